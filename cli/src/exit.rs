//! Exit codes, and how an error is told.

use std::error::Error;
use std::process::ExitCode;

use flotilla_client::{CatalogError, ConnectError, ProfilesError, SubmitError};
use flotilla_config::ConfigErrors;
use flotilla_dispatcher::{DispatcherError, TopologyError};
use flotilla_profile::BadProfile;
use flotilla_protocol::IdError;
use flotilla_protocol::event::{ErrorCode, RequestError};
use flotilla_simulator::fleet::FleetFaults;
use flotilla_simulator::run::ScenarioError;
use flotilla_simulator::trace::TraceFaults;
use flotilla_worker::WorkerError;

use crate::admin::AdminError;
use crate::batch::BatchError;
use crate::commands::{Interrupted, UsageError};
use crate::output::{self, OutputClosed};

/// What the process tells its caller. The codes are part of the command line's contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All went well.
    Ok,
    /// Something failed.
    Failed,
    /// The arguments or the configuration are wrong.
    Usage,
    /// No NATS server answers.
    Unreachable,
    /// The fleet refused: busy, or an invalid request.
    Refused,
    /// Ctrl-C.
    Interrupted,
}

impl Exit {
    /// The number.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::Refused => 4,
            Self::Interrupted => 130,
        }
    }

    /// The code of an error: the first cause that has one of its own decides.
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        error.chain().find_map(Self::of_cause).unwrap_or(Self::Failed)
    }

    fn of_cause(cause: &(dyn Error + 'static)) -> Option<Self> {
        if let Some(error) = cause.downcast_ref::<ConnectError>() {
            return Some(Self::of_connect(error));
        }
        if let Some(error) = cause.downcast_ref::<RequestError>() {
            return Some(Self::of_code(error.code));
        }
        if let Some(error) = cause.downcast_ref::<AdminError>() {
            return Some(Self::of_admin(error));
        }
        match cause.downcast_ref::<SubmitError>() {
            Some(SubmitError::Busy { .. } | SubmitError::TooLarge { .. }) => return Some(Self::Refused),
            Some(SubmitError::NoQueue { .. } | SubmitError::Unconfirmed { .. }) => return Some(Self::Failed),
            None => {}
        }
        if let Some(CatalogError::Exists { .. } | CatalogError::Unknown { .. }) = cause.downcast_ref() {
            return Some(Self::Refused);
        }
        if let Some(error) = cause.downcast_ref::<ProfilesError>() {
            return Some(Self::of_profiles(error));
        }
        if cause.is::<BadProfile>() {
            return Some(Self::Refused);
        }
        if let Some(DispatcherError::Topology(error)) = cause.downcast_ref()
            && matches!(
                **error,
                TopologyError::Unanswered { .. }
                    | TopologyError::Unavailable { .. }
                    | TopologyError::Offline { .. }
            )
        {
            return Some(Self::Unreachable);
        }
        if let Some(WorkerError::Simulation(_)) = cause.downcast_ref() {
            return Some(Self::Usage);
        }
        if let Some(BatchError::Faults { .. }) = cause.downcast_ref() {
            return Some(Self::Usage);
        }
        if cause.is::<Interrupted>() {
            return Some(Self::Interrupted);
        }
        let is_usage = [
            cause.is::<ConfigErrors>(),
            cause.is::<UsageError>(),
            cause.is::<IdError>(),
            cause.is::<FleetFaults>(),
            cause.is::<ScenarioError>(),
            cause.is::<TraceFaults>(),
        ];
        is_usage.contains(&true).then_some(Self::Usage)
    }

    fn of_connect(error: &ConnectError) -> Self {
        match error {
            ConnectError::Unreachable { .. } => Self::Unreachable,
            ConnectError::File { .. } | ConnectError::Namespace(_) | ConnectError::Owner(_) => Self::Usage,
            ConnectError::Version { .. }
            | ConnectError::KnownBad { .. }
            | ConnectError::NoJetStream { .. } => Self::Failed,
        }
    }

    fn of_profiles(error: &ProfilesError) -> Self {
        match error {
            ProfilesError::Older { .. } | ProfilesError::Unknown { .. } | ProfilesError::Contended { .. } => {
                Self::Refused
            }
            ProfilesError::NoBucket { .. }
            | ProfilesError::Store { .. }
            | ProfilesError::NotAProfile { .. } => Self::Failed,
        }
    }

    fn of_admin(error: &AdminError) -> Self {
        match error {
            AdminError::Refused { status, .. } if (400..500).contains(status) => Self::Refused,
            AdminError::Refused { .. }
            | AdminError::NoLeader { .. }
            | AdminError::NoAnswer { .. }
            | AdminError::Encode { .. }
            | AdminError::Unreadable { .. } => Self::Failed,
        }
    }

    /// The fleet refuses what the client can mend or repeat later; the rest is its own failure.
    fn of_code(code: ErrorCode) -> Self {
        match code {
            ErrorCode::InvalidRequest
            | ErrorCode::UnknownModel
            | ErrorCode::ContextExceeded
            | ErrorCode::DeadlineExceeded
            | ErrorCode::QueueFull
            | ErrorCode::ModelUnloadable
            | ErrorCode::TooLarge => Self::Refused,
            ErrorCode::Poisoned | ErrorCode::Internal => Self::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Writes an error and its causes to standard error, one line each. A reader that went away
/// (`flotilla ps | head -1`) is no news to anybody.
pub(crate) fn report(error: &anyhow::Error) {
    if error.chain().any(|cause| cause.is::<OutputClosed>()) {
        return;
    }
    for line in lines(error) {
        output::note(&line);
    }
}

/// The lines of [`report`]. A cause that repeats the line above it adds nothing.
fn lines(error: &anyhow::Error) -> Vec<String> {
    let mut texts: Vec<String> = error.chain().map(ToString::to_string).collect();
    texts.dedup();
    texts
        .iter()
        .enumerate()
        .map(|(index, text)| match index {
            0 => format!("flotilla: {text}"),
            _ => format!("  because: {text}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    fn request_error(code: ErrorCode) -> anyhow::Error {
        anyhow::Error::new(RequestError {
            code,
            message: "must be at least 1".into(),
            param: Some("max_tokens".into()),
        })
    }

    #[test]
    fn refusals_and_failures_of_the_fleet_have_codes_of_their_own() {
        assert_eq!(Exit::of(&request_error(ErrorCode::InvalidRequest)), Exit::Refused);
        assert_eq!(Exit::of(&request_error(ErrorCode::QueueFull)), Exit::Refused);
        assert_eq!(Exit::of(&request_error(ErrorCode::Internal)), Exit::Failed);
        let reason = "maximum messages exceeded".to_owned();
        assert_eq!(Exit::of(&SubmitError::Busy { reason }.into()), Exit::Refused);
    }

    #[test]
    fn the_code_is_found_below_a_context() {
        let error = request_error(ErrorCode::TooLarge).context("model adder");
        assert_eq!(Exit::of(&error), Exit::Refused);
        assert_eq!(Exit::of(&anyhow::anyhow!("the disk is full")), Exit::Failed);
    }

    #[test]
    fn wrong_settings_and_arguments_are_usage_errors_and_ctrl_c_is_none() {
        let options = flotilla_config::LoadOptions {
            flags: vec!["nats.ulr=x".into()],
            ..Default::default()
        };
        let error = flotilla_config::Config::load(&options).unwrap_err();
        assert_eq!(Exit::of(&error.into()), Exit::Usage);
        let error = UsageError::new("give a prompt");
        assert_eq!(Exit::of(&error.into()), Exit::Usage);
        assert_eq!(Exit::of(&Interrupted.into()), Exit::Interrupted);
    }

    #[test]
    fn codes_are_those_of_the_manual() {
        let all = [
            Exit::Ok,
            Exit::Failed,
            Exit::Usage,
            Exit::Unreachable,
            Exit::Refused,
            Exit::Interrupted,
        ];
        assert_eq!(all.map(Exit::code), [0, 1, 2, 3, 4, 130]);
    }

    #[test]
    fn every_cause_gets_one_line_and_none_is_said_twice() {
        let error = Err::<(), _>(std::io::Error::other("no space"))
            .context("cannot write up.json")
            .context("cannot write up.json")
            .unwrap_err();
        assert_eq!(
            lines(&error),
            ["flotilla: cannot write up.json", "  because: no space"]
        );
    }
}
