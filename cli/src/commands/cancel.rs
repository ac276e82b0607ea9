//! `flotilla cancel`: ends a request wherever it is.

use clap::Args;
use flotilla_protocol::RequestId;
use flotilla_protocol::admin::{CancelReply, CancelRequest};

use crate::admin;
use crate::context::Context;
use crate::exit::Exit;

/// Arguments of `flotilla cancel`.
#[derive(Debug, Args)]
pub(crate) struct CancelArguments {
    /// The request's id
    request: RequestId,
}

/// Asks the leading dispatcher to end the request.
///
/// # Errors
/// When no dispatcher answers.
pub(crate) async fn run(context: &Context, arguments: &CancelArguments) -> anyhow::Result<Exit> {
    let connection = context.connect("flotilla-cancel").await?;
    let question = CancelRequest {
        request: arguments.request.clone(),
    };
    let reply: CancelReply = admin::ask(&connection, "cancel", &question).await?;
    let sentence = match reply {
        CancelReply::Ended => "it waited and is ended",
        CancelReply::Told => "it runs; its worker has been told",
        CancelReply::Unknown => "the dispatcher does not hold it; it is ended should it arrive",
    };
    context.format.print_line(&reply, sentence)?;
    Ok(Exit::Ok)
}
