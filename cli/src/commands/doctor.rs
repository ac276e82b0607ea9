//! `flotilla doctor`: looks at everything that a fleet needs, changes nothing that stays, and says what to mend.

mod account;
mod fleet;
mod guarantee;
mod machine;
mod server;
mod store;
mod streams;

use serde::Serialize;

use crate::context::Context;
use crate::exit::Exit;
use crate::output::{self, Colour, Format};

/// What was found of one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

/// How good it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// As it should be.
    Ok,
    /// It works, with less than it could.
    Warn,
    /// The fleet cannot work, or loses work.
    Fail,
}

impl Verdict {
    fn word(self) -> String {
        match self {
            Self::Ok => output::coloured("ok  ", Colour::Green),
            Self::Warn => output::coloured("warn", Colour::Yellow),
            Self::Fail => output::coloured("FAIL", Colour::Red),
        }
    }
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Ok,
            found: found.into(),
            advice: None,
        }
    }

    fn warn(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Warn,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }

    fn fail(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fail,
            ..Self::warn(check, found, advice)
        }
    }
}

/// Prints a line for each thing.
///
/// # Errors
/// When nothing can be printed; what is found wrong is an exit code, not an error.
pub(crate) async fn run(context: &Context) -> anyhow::Result<Exit> {
    let mut findings = vec![machine::data_dir(context), machine::cpu_device(context)];
    match context.connect("flotilla-doctor").await {
        Err(error) => {
            let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
            let advice = "start nats-server with JetStream, or say where it is with --nats URL";
            findings.push(Finding::fail("server", causes.join(": "), advice));
        }
        Ok(connection) => {
            findings.extend(server::check(&connection, &context.config).await);
            findings.extend(streams::check(&connection, &context.config).await);
            findings.push(store::check(&connection).await);
            findings.extend(fleet::check(&connection).await);
        }
    }
    print(context.format, &findings)?;
    let has_failed = findings.iter().any(|it| it.verdict == Verdict::Fail);
    Ok(if has_failed { Exit::Failed } else { Exit::Ok })
}

fn print(format: Format, findings: &[Finding]) -> anyhow::Result<()> {
    if format == Format::Json {
        return output::line(serde_json::to_string_pretty(findings)?);
    }
    for finding in findings {
        output::line(format_args!(
            "{}  {:<12} {}",
            finding.verdict.word(),
            finding.check,
            finding.found
        ))?;
        if let Some(advice) = &finding.advice {
            output::line(format_args!("{:19}-> {advice}", ""))?;
        }
    }
    Ok(())
}
