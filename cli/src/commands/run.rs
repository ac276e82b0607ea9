//! `flotilla run`: generates, and prints the answer as it comes.

mod body;
mod follow;

use std::io::IsTerminal;

use anyhow::Context as _;
use clap::Args;
use flotilla_client::{Answer, Connection};
use flotilla_protocol::event::{FinishReason, RequestError};
use flotilla_protocol::request::ChatMessage;
use flotilla_protocol::{Class, ModelName, RequestId};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines, Stdin};

use crate::commands::UsageError;
use crate::context::Context;
use crate::exit::Exit;
use crate::output::{self, Format};
use crate::stop::Signals;
use body::Input;
use follow::{Asked, Ended};

/// Arguments of `flotilla run`.
#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// The model's name in the catalog
    pub(crate) model: ModelName,
    /// The prompt; read from standard input when absent or "-"
    pub(crate) prompt: Option<String>,
    /// Keeps a conversation: each line of standard input is a turn
    #[arg(long)]
    chat: bool,
    /// How urgent it is
    #[arg(long, default_value = "interactive", value_name = "interactive|batch")]
    class: Class,
    #[command(flatten)]
    options: body::BodyOptions,
    #[command(flatten)]
    shape: body::ShapeOptions,
}

/// Asks, and prints the answer.
///
/// # Errors
/// When the request is refused or fails, or the fleet cannot be reached.
pub(crate) async fn run(context: &Context, mut arguments: RunArguments) -> anyhow::Result<Exit> {
    arguments.options.response_format = arguments.shape.response_format()?;
    let connection = context.connect("flotilla-run").await?;
    let mut session = Session {
        connection,
        arguments,
        format: context.format,
        signals: Signals::new()?,
    };
    let ended = match session.arguments.chat {
        true => session.chat().await?,
        false => session.once().await?,
    };
    Ok(match ended {
        Some(()) => Exit::Ok,
        None => Exit::Interrupted,
    })
}

struct Session {
    connection: Connection,
    arguments: RunArguments,
    format: Format,
    signals: Signals,
}

/// Every step is `None` when somebody pressed Ctrl-C.
impl Session {
    async fn once(&mut self) -> anyhow::Result<Option<()>> {
        let prompt = match self.arguments.prompt.as_deref() {
            None | Some("-") => tokio::select! {
                prompt = read_prompt() => prompt?,
                () = self.signals.next() => return Ok(None),
            },
            Some(prompt) => prompt.to_owned(),
        };
        Ok(self.ask(Input::Prompt(prompt)).await?.map(drop))
    }

    /// One turn a line, until the input ends.
    async fn chat(&mut self) -> anyhow::Result<Option<()>> {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        let mut messages = Vec::new();
        let mut first = self.arguments.prompt.clone().filter(|prompt| prompt != "-");
        loop {
            let line = match first.take() {
                Some(prompt) => Some(prompt),
                None => tokio::select! {
                    line = next_line(&mut lines) => line?,
                    () = self.signals.next() => return Ok(None),
                },
            };
            let Some(line) = line else { return Ok(Some(())) };
            if line.trim().is_empty() {
                continue;
            }
            messages.push(ChatMessage::text("user", line));
            match self.ask(Input::Chat(messages.clone())).await? {
                Some(answer) => messages.push(ChatMessage::text("assistant", answer.text)),
                None => return Ok(None),
            }
        }
    }

    /// Asks and prints.
    async fn ask(&mut self, input: Input) -> anyhow::Result<Option<Answer>> {
        let model = self.arguments.model.clone();
        let body = self.arguments.options.body(input);
        let asked = Asked::submit(&self.connection, model, self.arguments.class, &body).await?;
        let request = asked.request.clone();
        match asked.follow(self.format, &mut self.signals).await? {
            Ended::Interrupted => {
                output::note(&format!("flotilla: {request} is cancelled"));
                Ok(None)
            }
            Ended::Answered(answer) => {
                if self.format == Format::Json {
                    print_json(&request, &answer)?;
                }
                if let Err(error) = &answer.end {
                    return Err(refused(error, &request));
                }
                Ok(Some(answer))
            }
        }
    }
}

/// The error of a request, with the field that caused it.
fn refused(error: &RequestError, request: &RequestId) -> anyhow::Error {
    let context = match &error.param {
        Some(param) => format!("request {request} has no answer; the cause is {param}"),
        None => format!("request {request} has no answer"),
    };
    anyhow::Error::new(error.clone()).context(context)
}

fn print_json(request: &RequestId, answer: &Answer) -> anyhow::Result<()> {
    let object = match &answer.end {
        Ok(finished) => json!({
            "request": request,
            "text": answer.text,
            "token_ids": answer.token_ids,
            "finish_reason": finished.finish_reason,
            "usage": finished.usage,
            "timings": finished.timings,
            "attempts": answer.attempts,
        }),
        Err(error) => json!({
            "request": request,
            "text": answer.text,
            "token_ids": answer.token_ids,
            "error": error,
            "attempts": answer.attempts,
        }),
    };
    output::line(serde_json::to_string(&object)?)
}

/// The reason as it travels.
pub(crate) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
    }
}

/// All of standard input, without its last line end: `echo` adds one that nobody means.
async fn read_prompt() -> anyhow::Result<String> {
    if std::io::stdin().is_terminal() {
        output::note("flotilla: reading the prompt from the terminal; end it with Ctrl-D");
    }
    let mut bytes = Vec::new();
    let mut input = tokio::io::stdin().take(PROMPT_BYTES_MAX + 1);
    input
        .read_to_end(&mut bytes)
        .await
        .context("cannot read standard input")?;
    if bytes.len() as u64 > PROMPT_BYTES_MAX {
        return Err(UsageError::new(format!("standard input has more than {PROMPT_BYTES_MAX} bytes")).into());
    }
    let text =
        String::from_utf8(bytes).map_err(|_| UsageError::new("standard input is not valid UTF-8 text"))?;
    Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
}

async fn next_line(lines: &mut Lines<BufReader<Stdin>>) -> anyhow::Result<Option<String>> {
    if std::io::stdin().is_terminal() {
        output::prompt("> ");
    }
    lines.next_line().await.context("cannot read standard input")
}

/// Largest body that any dispatcher can be configured to take.
const PROMPT_BYTES_MAX: u64 = 64 << 20;
