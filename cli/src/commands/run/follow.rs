//! One request from its publish to its end, told on the terminal.

use flotilla_client::{
    Answer, AnswerBuilder, Connection, Delivered, Events, NewRequest, new_request_id_of, submit,
};
use flotilla_protocol::event::{Event, Phase, Progress};
use flotilla_protocol::{Class, Encoding, ModelName, RequestId};

use crate::cancelling::cancel;
use crate::output::{self, Format, StatusLine};
use crate::stop::Signals;
use crate::table::span_ms;

/// A request whose events are followed.
pub(super) struct Asked<'a> {
    /// Its id.
    pub(super) request: RequestId,
    connection: &'a Connection,
    events: Events,
}

/// How following a request ended.
pub(super) enum Ended {
    /// With its terminal event.
    Answered(Answer),
    /// By Ctrl-C; the request is cancelled.
    Interrupted,
}

impl<'a> Asked<'a> {
    /// Subscribes to the events of a new request and publishes it.
    ///
    /// # Errors
    /// When it is not known to be stored.
    pub(super) async fn submit(
        connection: &'a Connection,
        model: ModelName,
        class: Class,
        body: &[u8],
    ) -> anyhow::Result<Self> {
        let request = new_request_id_of(connection);
        let events = Events::subscribe(connection, request.clone()).await?;
        let new = NewRequest {
            request: request.clone(),
            class,
            model,
            encoding: Encoding::Json,
            body: bytes::Bytes::copy_from_slice(body),
        };
        submit(connection, new).await?;
        Ok(Self {
            request,
            connection,
            events,
        })
    }

    /// Prints the text as it comes, unless the whole answer is printed as JSON later.
    ///
    /// # Errors
    /// When the events cannot be followed to their end.
    pub(super) async fn follow(mut self, format: Format, signals: &mut Signals) -> anyhow::Result<Ended> {
        let mut builder = AnswerBuilder::default();
        let mut screen = Screen::new(format);
        loop {
            let delivered = tokio::select! {
                delivered = self.events.next() => delivered?,
                () = signals.next() => {
                    screen.end()?;
                    cancel(self.connection, [self.request]).await?;
                    return Ok(Ended::Interrupted);
                }
            };
            let delivered = delivered.expect("the builder ends with the last event");
            screen.show(&delivered)?;
            if let Some(answer) = builder.push(delivered) {
                screen.end()?;
                return Ok(Ended::Answered(answer));
            }
        }
    }
}

/// What a person sees of a request.
struct Screen {
    format: Format,
    status: StatusLine,
    has_text: bool,
}

impl Screen {
    fn new(format: Format) -> Self {
        Self {
            format,
            status: StatusLine::new(),
            has_text: false,
        }
    }

    fn show(&mut self, delivered: &Delivered) -> anyhow::Result<()> {
        match &delivered.event {
            // It says less than what was said before.
            Event::Progress(progress) if progress.phase == Phase::Running => {}
            Event::Progress(progress) if !self.has_text => self.status.show(&sentence(progress)),
            Event::Progress(_) | Event::Accepted(_) => {}
            Event::Tokens(tokens) => {
                self.status.clear();
                if self.format == Format::Text && !tokens.text.is_empty() {
                    self.has_text = true;
                    output::text(&tokens.text)?;
                }
            }
            Event::Finished(_) => {
                // An answer without a token is an empty line, too.
                self.has_text |= self.format == Format::Text;
            }
            Event::Failed(_) => {}
        }
        Ok(())
    }

    /// Leaves the cursor at the start of a line.
    fn end(&mut self) -> anyhow::Result<()> {
        self.status.clear();
        match std::mem::take(&mut self.has_text) {
            true => output::text("\n"),
            false => Ok(()),
        }
    }
}

fn sentence(progress: &Progress) -> String {
    let mut sentence = progress.phase.to_string();
    if let Some(position) = progress.position {
        sentence.push_str(&format!(", {position} before this one"));
    }
    if let Some(fraction) = progress.fraction {
        sentence.push_str(&format!(" {:.0} %", fraction * 100.0));
    }
    if let Some(eta_ms) = progress.eta_ms {
        sentence.push_str(&format!(", about {} to the first token", span_ms(eta_ms)));
    }
    sentence
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_in_one_sentence() {
        let progress = Progress {
            phase: Phase::Queued,
            position: Some(3),
            fraction: None,
            eta_ms: Some(1_500),
        };
        assert_eq!(
            sentence(&progress),
            "queued, 3 before this one, about 1.5 s to the first token"
        );
        let progress = Progress {
            phase: Phase::Fetching,
            position: None,
            fraction: Some(0.434),
            eta_ms: None,
        };
        assert_eq!(sentence(&progress), "fetching 43 %");
    }
}
