//! `flotilla why`: where a request stands, what it waits for, and what each device would make of it.

use clap::Args;
use flotilla_protocol::RequestId;
use flotilla_protocol::admin::{Decision, Explanation, Standing, WhyReply, WhyRequest};

use crate::admin;
use crate::context::Context;
use crate::exit::Exit;
use crate::output::{self, Format};
use crate::table::{Table, numbers, span_ms, words};

/// Arguments of `flotilla why`.
#[derive(Debug, Args)]
pub(crate) struct WhyArguments {
    /// The request's id
    request: RequestId,
}

/// Asks the leading dispatcher about a request. Exits with 1 when it does not hold it.
///
/// # Errors
/// When no dispatcher answers.
pub(crate) async fn run(context: &Context, arguments: &WhyArguments) -> anyhow::Result<Exit> {
    let connection = context.connect("flotilla-why").await?;
    let question = WhyRequest {
        request: arguments.request.clone(),
    };
    let reply: WhyReply = admin::ask(&connection, "why", &question).await?;
    let exit = match reply.found {
        Some(_) => Exit::Ok,
        None => Exit::Failed,
    };
    if context.format == Format::Text {
        match &reply.found {
            Some(found) => {
                for line in sentences(found) {
                    output::line(format_args!("{line}"))?;
                }
                if !found.candidates.is_empty() {
                    output::line(format_args!(""))?;
                    context.format.print(&reply, |_| vec![candidates(found)])?;
                }
            }
            None => output::line(format_args!(
                "the dispatcher does not hold {}: it ended, never came, or still waits in the stream; \
                 `flotilla journal {}` shows its events",
                reply.request, reply.request
            ))?,
        }
    } else {
        context.format.print(&reply, |_| Vec::new())?;
    }
    Ok(exit)
}

fn sentences(found: &Explanation) -> Vec<String> {
    let estimated = match found.prompt_estimated {
        true => " (estimated from its bytes)",
        false => "",
    };
    let target = match found.target_ms {
        Some(target_ms) => format!("to be answered within {} of its publish", span_ms(target_ms)),
        None => "without a target".to_owned(),
    };
    let (low, high) = found.output_tokens;
    let mut lines = vec![format!(
        "{} request for {}, {} old, {} prompt tokens{estimated}, {low} to {high} expected, {target}",
        found.class,
        found.model,
        span_ms(found.age_ms),
        found.prompt_tokens
    )];
    lines.extend(standing(&found.standing));
    let hidden = usize::try_from(found.candidates_total)
        .unwrap_or(usize::MAX)
        .saturating_sub(found.candidates.len());
    if hidden > 0 {
        lines.push(format!("{hidden} further devices are not listed"));
    }
    lines
}

fn standing(standing: &Standing) -> Vec<String> {
    match standing {
        Standing::Checking => vec!["its journal is read, or its worker is awaited".to_owned()],
        Standing::Queued {
            line,
            slack_ms,
            reserved,
            waits_for,
        } => {
            let doing = match (line.as_str(), slack_ms) {
                ("in_time", Some(slack_ms)) => format!("it has to start within {slack_ms} ms"),
                ("in_time", None) => "its turn comes by age".to_owned(),
                ("given_up", _) => "it was given up so that more of the others are in time".to_owned(),
                _ => "no device can serve it in time any more".to_owned(),
            };
            let mut lines = vec![format!("it waits for {waits_for}; {doing}")];
            if *reserved {
                lines.push("a device is kept for it".to_owned());
            }
            lines
        }
        Standing::Assigned {
            worker,
            attempt,
            decision,
        } => {
            let mut lines = vec![format!("it is on {worker}, attempt {attempt}")];
            lines.extend(decision.as_ref().map(decided));
            lines
        }
        Standing::Ending => vec!["its last event is being written".to_owned()],
    }
}

fn decided(decision: &Decision) -> String {
    let Decision {
        device_kind,
        starts_in_ms,
        ends_in_ms,
        slack_ms,
        share,
        load,
        not_preferred,
        too_late,
        no_room,
        no_copy,
    } = decision;
    let slack = match slack_ms {
        Some(slack_ms) => format!(", {slack_ms} ms to spare"),
        None => String::new(),
    };
    format!(
        "chosen on a {device_kind} that was to start in {} and end in {}{slack}, for {:.1} % of it and {:.1} % \
         booked in all; of the other devices {not_preferred} were not preferred, {too_late} too late, \
         {no_room} without room, {no_copy} without the model",
        span_ms(*starts_in_ms),
        span_ms(*ends_in_ms),
        share * 100.0,
        load * 100.0
    )
}

fn candidates(found: &Explanation) -> Table {
    let mut table = Table::new([
        words("WORKER"),
        words("KIND"),
        words("ROOM"),
        words("MODEL"),
        numbers("BOOKED"),
        numbers("SHARE"),
        numbers("STARTS IN"),
        numbers("ENDS IN"),
        numbers("TO SPARE"),
        words("EVICTS"),
    ]);
    for candidate in &found.candidates {
        let victims: Vec<&str> = candidate.victims.iter().map(|model| model.as_str()).collect();
        table.row([
            format!("{}/{}", candidate.worker, candidate.device),
            candidate.device_kind.clone(),
            candidate.room.clone(),
            candidate.model.clone(),
            format!("{:.1} %", candidate.load * 100.0),
            format!("{:.1} %", candidate.share * 100.0),
            span_ms(candidate.starts_in_ms),
            span_ms(candidate.ends_in_ms),
            candidate
                .slack_ms
                .map_or_else(|| "-".to_owned(), |slack_ms| format!("{slack_ms} ms")),
            victims.join(" "),
        ]);
    }
    table
}
