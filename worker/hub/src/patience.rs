//! How often, and when, a hub is asked again.

use std::time::Duration;

use flotilla_protocol::hub::HubModel;
use tokio::time::sleep;
use tracing::warn;

use crate::error::{HubError, Interruption};

/// Tries of one thing. Those that bring something new are not counted.
pub(crate) struct Patience<'a> {
    model: &'a HubModel,
    path: &'a str,
    tries: u32,
}

/// What a try has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advance {
    /// Nothing that need not come again.
    None,
    /// Some bytes.
    Some,
}

impl<'a> Patience<'a> {
    pub(crate) const fn new(model: &'a HubModel, path: &'a str) -> Self {
        Self {
            model,
            path,
            tries: 0,
        }
    }

    /// Waits until the next try, for as long as the hub asks for or longer from time to time.
    ///
    /// # Errors
    /// [`HubError::Interrupted`] after too many tries that brought nothing.
    pub(crate) async fn pause(&mut self, advance: Advance, because: Interruption) -> Result<(), HubError> {
        self.tries = match advance {
            Advance::None => self.tries + 1,
            Advance::Some => 1,
        };
        let tries = self.tries;
        if tries >= TRIES_MAX {
            return Err(HubError::Interrupted {
                model: self.model.clone(),
                path: self.path.to_owned(),
                tries,
                source: because,
            });
        }
        let wanted = match &because {
            Interruption::Status { retry_after, .. } => *retry_after,
            Interruption::Connection(_) | Interruption::Short { .. } => None,
        };
        let pause = wanted
            .unwrap_or(PAUSE_FIRST * 2_u32.pow(tries - 1))
            .min(PAUSE_MAX);
        let (model, path) = (self.model, self.path);
        warn!(%model, path, tries, error = &because as &dyn std::error::Error, pause_ms = pause.as_millis(), "the hub is asked again");
        sleep(pause).await;
        Ok(())
    }
}

/// Tries without anything new: some seconds of trouble are bridged, a hub that is gone is told soon.
const TRIES_MAX: u32 = 5;
const PAUSE_FIRST: Duration = Duration::from_millis(500);
/// The hub counts requests over five minutes, but somebody waits for the model.
const PAUSE_MAX: Duration = Duration::from_secs(60);
