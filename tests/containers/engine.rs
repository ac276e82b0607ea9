//! A Docker engine, asked through its own client. No image is fetched: containers see the programs of this machine.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

/// A network and an empty image for the containers of one test; both go with the last of its clones.
#[derive(Debug, Clone)]
pub struct Engine {
    owned: Arc<Owned>,
}

#[derive(Debug)]
struct Owned {
    name: String,
}

/// A running container; removed when dropped.
#[derive(Debug)]
pub struct Container {
    name: String,
    process: u32,
    address: IpAddr,
    home: PathBuf,
    // The network can go when nobody is in it.
    _engine: Engine,
}

impl Engine {
    /// Makes a network and an image, and removes what tests left that were killed.
    ///
    /// # Errors
    /// No engine answers, or it refuses.
    pub fn start() -> Result<Self> {
        static TESTS: AtomicU32 = AtomicU32::new(0);
        let process = std::process::id();
        remove_orphans()?;
        let test = TESTS.fetch_add(1, Ordering::Relaxed);
        let owned = Owned {
            name: format!("{PREFIX}{process}-{test}"),
        };
        import_empty(&owned.name)?;
        docker(&["network", "create", &owned.name])?;
        Ok(Self {
            owned: Arc::new(owned),
        })
    }

    /// A container with a program of this machine, which begins at [`Container::begin`]; `home` is its folder `/home`,
    /// where it works.
    ///
    /// # Errors
    /// The engine refuses.
    pub fn run(&self, name: &str, home: &Path, program: &Path, arguments: &[String]) -> Result<Container> {
        let network = &self.owned.name;
        let container = format!("{network}-{name}");
        let mut words: Vec<String> = ["run", "--detach", "--workdir", "/home"].map(Into::into).into();
        words.extend(["--name".to_owned(), container.clone()]);
        words.extend(["--hostname".to_owned(), name.to_owned()]);
        words.extend(["--network".to_owned(), network.clone()]);
        let program = program.canonicalize()?;
        let libraries = LIBRARIES.iter().map(Path::new).filter(|folder| folder.exists());
        let mounts = libraries.map(|folder| format!("{0}:{0}:ro", folder.display()));
        for mount in mounts.chain([
            format!("{}:{PROGRAM}:ro", program.display()),
            format!("{}:/home", home.display()),
        ]) {
            words.extend(["--volume".to_owned(), mount]);
        }
        words.extend([network.as_str(), "/usr/bin/sh", "-c", WAIT, PROGRAM].map(str::to_owned));
        words.extend_from_slice(arguments);
        docker(&words)?;
        // From here on it is removed, whatever happens.
        let mut started = Container {
            name: container,
            process: 0,
            address: IpAddr::from([0; 4]),
            home: home.to_owned(),
            _engine: self.clone(),
        };
        started.look()?;
        Ok(started)
    }
}

impl Container {
    fn look(&mut self) -> Result<()> {
        let format = "{{.State.Pid}} {{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let said = docker(&["inspect", "--format", format, &self.name])?;
        let (process, address) = said.trim().split_once(' ').context("an id and an address")?;
        self.process = process.parse()?;
        if self.process == 0 {
            bail!("{} ended at once:\n{}", self.name, self.log());
        }
        self.address = address.parse().with_context(|| said.clone())?;
        Ok(())
    }

    /// Lets its program begin: its link is as it should be.
    pub fn begin(&self) -> Result<()> {
        Ok(fs::write(self.home.join(BEGIN), "")?)
    }

    /// Its address in the test's network.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// What its program has written so far.
    pub fn log(&self) -> String {
        let output = output(&["logs", &self.name], &[]);
        output.map_or_else(
            |error| format!("{error:#}"),
            |output| {
                [output.stdout, output.stderr]
                    .map(|text| String::from_utf8_lossy(&text).into_owned())
                    .concat()
            },
        )
    }

    /// A program of this machine, in the container's network.
    pub fn in_its_network(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &self.process.to_string(), program]);
        command
    }
}

impl Drop for Container {
    #[expect(clippy::print_stderr, reason = "a failed test shows what its processes said")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {} ---\n{}", self.name, self.log());
        }
        if let Err(error) = docker(&["rm", "--force", "--volumes", &self.name]) {
            eprintln!("{} stays: {error:#}", self.name);
        }
    }
}

impl Drop for Owned {
    #[expect(clippy::print_stderr, reason = "somebody has to remove it")]
    fn drop(&mut self) {
        let removed = [
            docker(&["network", "rm", &self.name]),
            docker(&["image", "rm", "--force", &self.name]),
        ];
        for error in removed.into_iter().filter_map(Result::err) {
            eprintln!("{} stays: {error:#}", self.name);
        }
    }
}

/// Removes what belongs to tests whose process is gone: they were killed before they could.
fn remove_orphans() -> Result<()> {
    let kinds = [
        ("ps --all --format {{.Names}}", "rm --force --volumes"),
        ("network ls --format {{.Name}}", "network rm"),
        ("images --format {{.Repository}}", "image rm --force"),
    ];
    let words = |words: &'static str| words.split(' ').collect::<Vec<&str>>();
    for (list, remove) in kinds {
        let listed = docker(&words(list))?;
        let is_orphan = |name: &&str| {
            let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
            process.is_some_and(|process| !Path::new("/proc").join(process).exists())
        };
        for name in listed.lines().filter(is_orphan) {
            docker(&[words(remove), vec![name]].concat())?;
        }
    }
    Ok(())
}

/// An image without any file: an archive that is nothing but its end.
fn import_empty(name: &str) -> Result<()> {
    succeeded(output(&["import", "-", name], &[0; 1024])?).map(drop)
}

fn docker<W: AsRef<str>>(words: &[W]) -> Result<String> {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    succeeded(output(&words, &[])?).with_context(|| format!("docker {}", words.join(" ")))
}

/// What a command said, or what it complained of.
pub fn succeeded(output: Output) -> Result<String> {
    if !output.status.success() {
        bail!(
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn output(words: &[&str], input: &[u8]) -> Result<Output> {
    let mut child = Command::new("docker")
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run docker; .ci/containers.sh says what these tests need")?;
    let mut stdin = child.stdin.take().context("a pipe")?;
    stdin.write_all(input)?;
    drop(stdin);
    Ok(child.wait_with_output()?)
}

/// Begins the names of everything that belongs to a test; its process follows.
const PREFIX: &str = "flotilla-test-";
const PROGRAM: &str = "/program";
/// Becomes the program as soon as it may begin. Connections that are there before a link is shaped would go on with what
/// they have learned of it.
const WAIT: &str = "until [ -e /home/begin ]; do sleep 0.02; done; exec \"$0\" \"$@\"";
const BEGIN: &str = "begin";
/// Where programs that are not linked statically find the rest of themselves.
const LIBRARIES: [&str; 3] = ["/usr", "/lib", "/lib64"];
