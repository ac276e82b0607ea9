//! `flotilla top`: what `flotilla ps` shows, again every second, until `q` or Ctrl-C.

use std::io::{self, IsTerminal, Read};
use std::thread;
use std::time::Duration;

use clap::Args;
use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use tokio::signal::ctrl_c;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::ps;
use crate::context::Context;
use crate::exit::Exit;
use crate::output;

/// What `flotilla top` takes.
#[derive(Debug, Args)]
pub(crate) struct TopArguments {
    /// Show it once and end
    #[arg(long)]
    once: bool,
}

/// Shows the fleet until somebody has seen enough.
///
/// # Errors
/// When no dispatcher answers, or standard output is closed.
pub(crate) async fn run(context: &Context, arguments: &TopArguments) -> anyhow::Result<Exit> {
    if arguments.once {
        return ps::run(context).await;
    }
    let connection = context.connect("flotilla-top").await?;
    let _keys_at_once = KeysAtOnce::begin()?;
    let mut keys = keys()?;
    let mut ticks = interval(REFRESH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let interrupted = ctrl_c();
    tokio::pin!(interrupted);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let fleet = ps::ask(&connection).await?;
                let tables: Vec<String> = ps::tables(&fleet).iter().map(ToString::to_string).collect();
                output::text(&format!("{CLEAR}{}\nq ends\n", tables.join("\n")))?;
            }
            Some(key) = keys.recv() => if key == b'q' {
                return Ok(Exit::Ok);
            },
            pressed = &mut interrupted => {
                pressed?;
                return Ok(Exit::Ok);
            }
        }
    }
}

/// A terminal that gives keys without waiting for the end of a line; as it was again when this is dropped.
struct KeysAtOnce {
    before: Option<Termios>,
}

impl KeysAtOnce {
    /// Does nothing where standard input is no terminal.
    fn begin() -> io::Result<Self> {
        let input = io::stdin();
        if !input.is_terminal() {
            return Ok(Self { before: None });
        }
        let before = termios::tcgetattr(&input)?;
        let mut at_once = before.clone();
        at_once.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        termios::tcsetattr(&input, OptionalActions::Now, &at_once)?;
        Ok(Self { before: Some(before) })
    }
}

impl Drop for KeysAtOnce {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // A terminal that is gone needs no settings.
            let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// The keys that are pressed; none where standard input is no terminal. The thread that reads them ends with the
/// process: nothing else ends a read.
fn keys() -> io::Result<mpsc::Receiver<u8>> {
    let (pressed, keys) = mpsc::channel(KEYS_MAX);
    if io::stdin().is_terminal() {
        thread::Builder::new().name("keys".to_owned()).spawn(move || {
            for key in io::stdin().lock().bytes().map_while(Result::ok) {
                if pressed.blocking_send(key).is_err() {
                    return;
                }
            }
        })?;
    }
    Ok(keys)
}

/// Between two looks at the fleet: workers report as often when nothing happens.
const REFRESH: Duration = Duration::from_secs(1);
/// Cursor home, and everything from there on gone.
const CLEAR: &str = "\x1b[H\x1b[2J";
/// Keys that wait to be looked at; a person presses fewer a second.
const KEYS_MAX: usize = 16;
