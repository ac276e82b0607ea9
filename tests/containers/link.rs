//! What a link does to what passes: delay, loss, rate.
//!
//! The kernel does it, to real packets between network namespaces. With netem (`sch_netem`) that is one queueing
//! discipline. A kernel without it gets the same of three parts: `tbf` for the rate, a random match of iptables for loss,
//! and a queue of netfilter whose packets `delay.py` lets go later.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::engine::{Container, succeeded};

/// A link between a container and the others. Rate and, with netem, delay and loss count for what leaves it, without
/// netem delay and loss count for what comes: between two containers with such links it is the same.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// How much later a packet arrives.
    pub delay: Duration,
    /// Packets that are lost, of a hundred.
    pub loss_percent: u8,
    /// Most megabits that pass in a second.
    pub mbit_per_s: u32,
}

/// A link that is as it was told to be, until the value is dropped.
#[derive(Debug)]
pub struct Shaped {
    by: By,
}

#[derive(Debug)]
enum By {
    Netem,
    Parts { delaying: Option<Child> },
}

impl Shaped {
    /// Shapes a container's link.
    ///
    /// # Errors
    /// This machine can do it neither way.
    pub fn new(container: &Container, link: &Link) -> Result<Self> {
        let by = match netem(container, link, link.loss_percent) {
            Ok(()) => By::Netem,
            Err(error) if format!("{error:#}").contains("unknown") => By::Parts {
                delaying: parts(container, link)?,
            },
            Err(error) => return Err(error),
        };
        Ok(Self { by })
    }

    /// Makes it lose everything.
    ///
    /// # Errors
    /// The system refuses.
    pub fn cut(&self, container: &Container, link: &Link) -> Result<()> {
        match self.by {
            By::Netem => netem(container, link, 100),
            By::Parts { .. } => {
                iptables(container, "-I PREROUTING -i eth0 -j DROP")?;
                iptables(container, "-I OUTPUT -o eth0 -j DROP")
            }
        }
    }
}

impl Drop for Shaped {
    fn drop(&mut self) {
        if let By::Parts {
            delaying: Some(delaying),
        } = &mut self.by
        {
            // One that has ended already is what we want.
            drop(delaying.kill());
            drop(delaying.wait());
        }
    }
}

fn netem(container: &Container, link: &Link, loss_percent: u8) -> Result<()> {
    let (delay_ms, mbit) = (link.delay.as_millis(), link.mbit_per_s);
    let how = format!("netem limit 20000 delay {delay_ms}ms loss {loss_percent}% rate {mbit}mbit");
    queueing(container, &how)
}

fn parts(container: &Container, link: &Link) -> Result<Option<Child>> {
    queueing(
        container,
        &format!("tbf rate {}mbit burst 256kb latency 50ms", link.mbit_per_s),
    )?;
    iptables(container, "-F PREROUTING")?;
    if link.loss_percent > 0 {
        let mut lose = "-A PREROUTING -i eth0 -m statistic --mode random --probability ".to_owned();
        write!(lose, "{} -j DROP", f32::from(link.loss_percent) / 100.0)?;
        iptables(container, &lose)?;
    }
    if link.delay.is_zero() {
        return Ok(None);
    }
    let delaying = delay(container, link.delay)?;
    iptables(container, "-A PREROUTING -i eth0 -j NFQUEUE --queue-num 0")?;
    Ok(Some(delaying))
}

/// Starts what lets packets of the queue go, and waits until it listens: without a listener the queue drops them.
fn delay(container: &Container, delay: Duration) -> Result<Child> {
    let python = std::env::var("FLOTILLA_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut delaying = container
        .in_its_network(&python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/containers/delay.py"))
        .args(["0", &delay.as_millis().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run nsenter")?;
    let mut said = String::new();
    BufReader::new(delaying.stdout.take().context("a pipe")?).read_line(&mut said)?;
    ensure!(said == "ready\n", "{python} does not delay: {said}");
    Ok(delaying)
}

fn queueing(container: &Container, how: &str) -> Result<()> {
    run(container, "tc", &format!("qdisc replace dev eth0 root {how}"))
}

fn iptables(container: &Container, what: &str) -> Result<()> {
    run(container, "iptables", &format!("-t raw {what}"))
}

fn run(container: &Container, program: &str, words: &str) -> Result<()> {
    let output = container
        .in_its_network(program)
        .args(words.split_whitespace())
        .output()
        .context("cannot run nsenter")?;
    succeeded(output)
        .map(drop)
        .with_context(|| format!("{program} {words}"))
}
