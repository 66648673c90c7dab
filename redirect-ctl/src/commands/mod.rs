//! The commands of `redirect-ctl`: each asks the API and prints the answer. What they need of the world comes in [`Env`], so that tests
//! call them in process.

mod audit;
mod certificate;
mod class;
mod config;
mod credentials;
mod event;
mod explain;
mod flow;
mod gateway;
mod group;
mod interface;
mod lint;
mod lock;
mod managed_domain;
mod output;
mod postfix_check;
mod relay;
mod route;
mod stats;
mod status;
mod subscriber;
mod token;
mod trace;
mod uninstall;
mod user;

use std::{
    fmt,
    fs::File,
    io::{self, BufRead as _, BufReader, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Parser;
use redirect_relay::{Rate, gateway::Secret};
use serde::{Serialize, de::DeserializeOwned};

use self::output::Table;
use crate::{
    api::{
        client::{self, Changed, Client},
        endpoint::Endpoint,
        types::Page,
    },
    cli::{Cli, Noun, Output},
    config::DEFAULT_SOCKET,
    limits,
};

/// What a command takes from the world.
pub struct Env<'a> {
    /// Data only.
    pub stdout: &'a mut dyn Write,
    /// One line for each problem.
    pub stderr: &'a mut dyn Write,
    pub stdin: &'a mut dyn Read,
    pub getenv: &'a dyn Fn(&str) -> Option<String>,
    /// Whether somebody looks at `stdout` as it is written.
    pub is_terminal: bool,
    /// Whether somebody looks at `stderr`.
    pub progress: bool,
}

/// Exit codes, as `--help` documents them.
pub mod exit {
    pub const OK: u8 = 0;
    pub const ERROR: u8 = 1;
    pub const USAGE: u8 = 2;
    pub const NOT_FOUND: u8 = 3;
    pub const CONFLICT: u8 = 4;
    pub const UNREACHABLE: u8 = 5;
    pub const DIFFERS: u8 = 6;
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Failed(String),
    /// Two things that were compared; what differs was printed.
    #[error("there are differences")]
    Differs,
}

impl Error {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => exit::USAGE,
            Self::Differs => exit::DIFFERS,
            Self::Client(client::Error::Unreachable { .. } | client::Error::Timeout { .. }) => exit::UNREACHABLE,
            Self::Client(client::Error::Problem(problem)) => match problem.status {
                404 => exit::NOT_FOUND,
                409 | 412 => exit::CONFLICT,
                _ => exit::ERROR,
            },
            Self::Client(client::Error::Answer(_)) | Self::Print(_) | Self::Failed(_) => exit::ERROR,
        }
    }
}

/// Runs `redirect-ctl` with `args` (the first is the program's name) and returns its exit code.
pub async fn run(env: &mut Env<'_>, args: &[String]) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage(env, &error),
    };
    match dispatch(env, cli).await {
        Ok(()) => exit::OK,
        // Whoever reads us has seen enough (`| head`); not our error.
        Err(Error::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => exit::OK,
        Err(Error::Differs) => exit::DIFFERS,
        Err(error) => {
            let line = error.to_string().replace(['\n', '\r'], " ");
            // If even that cannot be said, the exit code says it.
            let _ = writeln!(env.stderr, "redirect-ctl: {line}");
            error.exit_code()
        }
    }
}

/// Help and version are answers, on stdout; a wrong command line is an error.
fn usage(env: &mut Env<'_>, error: &clap::Error) -> u8 {
    if error.use_stderr() {
        let _ = write!(env.stderr, "{}", error.render());
        exit::USAGE
    } else {
        let _ = write!(env.stdout, "{}", error.render());
        exit::OK
    }
}

async fn dispatch(env: &mut Env<'_>, cli: Cli) -> Result<(), Error> {
    let endpoint = match (cli.host, (env.getenv)("REDIRECT_HOST").filter(|host| !host.is_empty())) {
        (Some(endpoint), _) => endpoint,
        (None, Some(host)) => host.parse().map_err(|invalid| Error::Usage(format!("REDIRECT_HOST: {invalid}")))?,
        (None, None) => Endpoint::Unix(PathBuf::from(DEFAULT_SOCKET)),
    };
    let transport = credentials::transport(env, endpoint, cli.credentials)?;
    let mut context = Context {
        client: Client::over(transport, cli.timeout),
        stdout: env.stdout,
        stderr: env.stderr,
        stdin: env.stdin,
        output: cli.output,
        headers: !cli.no_headers,
        is_terminal: env.is_terminal,
        progress: env.progress,
    };
    match cli.noun {
        Noun::Status => status::run(&mut context).await,
        Noun::Stats(args) => stats::run(&mut context, args).await,
        Noun::Explain(args) => explain::run(&mut context, args).await,
        Noun::Event(verb) => event::run(&mut context, verb).await,
        Noun::Flow(verb) => flow::run(&mut context, verb).await,
        Noun::Trace(args) => trace::run(&mut context, args).await,
        Noun::Lock(verb) => lock::run(&mut context, verb).await,
        Noun::Subscriber(verb) => subscriber::run(&mut context, verb).await,
        Noun::Class(verb) => class::run(&mut context, verb).await,
        Noun::Relay(verb) => relay::run(&mut context, verb).await,
        Noun::Interface(verb) => interface::run(&mut context, verb).await,
        Noun::Gateway(verb) => gateway::run(&mut context, verb).await,
        Noun::Group(verb) => group::run(&mut context, verb).await,
        Noun::Route(verb) => route::run(&mut context, verb).await,
        Noun::Certificate(verb) => certificate::run(&mut context, verb).await,
        Noun::User(verb) => user::run(&mut context, verb).await,
        Noun::Token(verb) => token::run(&mut context, verb).await,
        Noun::Audit(verb) => audit::run(&mut context, verb).await,
        Noun::Config(verb) => {
            let user = ["SUDO_USER", "USER"].into_iter().find_map(|name| (env.getenv)(name));
            config::run(&mut context, verb, user).await
        }
        Noun::Lint => lint::run(&mut context).await,
        Noun::ManagedDomain(verb) => managed_domain::run(&mut context, verb).await,
        Noun::PostfixCheck(args) => postfix_check::run(&mut context, &args, cli.timeout).await,
        Noun::Uninstall(args) => uninstall::run(&mut context, &args),
    }
}

/// What was given by `--{option}` for each kind, as the quota `Q`.
fn quota<Q: DeserializeOwned>(option: &str, quotas: Vec<(String, Rate)>) -> Result<Q, Error> {
    let mut members = serde_json::Map::new();
    for (kind, rate) in quotas {
        let rate = serde_json::to_value(rate).map_err(|error| Error::Usage(error.to_string()))?;
        if members.insert(kind.clone(), rate).is_some() {
            return Err(Error::Usage(format!("--{option} has {kind} twice")));
        }
    }
    serde_json::from_value(members.into()).map_err(|error| Error::Usage(error.to_string()))
}

/// The command line has seen to it that it fits.
fn whole_seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

fn failed(path: &Path, why: &dyn fmt::Display) -> Error {
    Error::Failed(format!("{}: {why}", path.display()))
}

/// What every command works with.
struct Context<'a> {
    client: Client,
    stdout: &'a mut dyn Write,
    stderr: &'a mut dyn Write,
    stdin: &'a mut dyn Read,
    output: Output,
    headers: bool,
    is_terminal: bool,
    progress: bool,
}

impl Context<'_> {
    /// Prints an answer as JSON, or as the table that `table` makes of it.
    fn print<T: Serialize>(&mut self, answer: &T, table: impl FnOnce(&T) -> Table) -> Result<(), Error> {
        match self.output {
            Output::Json => self.json(answer),
            Output::Table => Ok(self.stdout.write_all(table(answer).render(self.headers).as_bytes())?),
        }
    }

    fn json(&mut self, answer: &impl Serialize) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(answer).map_err(|error| client::Error::Answer(error.to_string()))?;
        Ok(writeln!(self.stdout, "{text}")?)
    }

    /// Prints what a `set` made.
    fn set(&mut self, what: &str, answer: &impl Serialize, changed: Changed) -> Result<(), Error> {
        match self.output {
            Output::Json => self.json(answer)?,
            Output::Table => writeln!(self.stdout, "{what} set (revision {})", changed.revision)?,
        }
        self.late(changed)
    }

    /// Prints what was done without a revision.
    fn done(&mut self, answer: &impl Serialize, text: &str) -> Result<(), Error> {
        match self.output {
            Output::Json => self.json(answer),
            Output::Table => Ok(writeln!(self.stdout, "{text}")?),
        }
    }

    fn deleted(&mut self, what: &str, changed: Changed) -> Result<(), Error> {
        match self.output {
            Output::Json => self.json(&changed)?,
            Output::Table => writeln!(self.stdout, "{what} deleted (revision {})", changed.revision)?,
        }
        self.late(changed)
    }

    fn late(&mut self, changed: Changed) -> Result<(), Error> {
        if !changed.applied {
            let text = format!(
                "revision {} is stored, but the kernel does not hold it yet; see redirect-ctl status",
                changed.revision
            );
            writeln!(self.stderr, "redirect-ctl: {text}")?;
        }
        Ok(())
    }

    /// Asks on `stderr`, since nothing but data goes to `stdout`.
    fn confirm(&mut self, question: &str) -> Result<(), Error> {
        write!(self.stderr, "{question} [y/N] ")?;
        self.stderr.flush()?;
        let mut answer = String::new();
        BufReader::new((&mut *self.stdin).take(limits::LINE_BYTES_MAX)).read_line(&mut answer)?;
        match answer.trim() {
            "y" | "Y" | "yes" => Ok(()),
            _ => Err(Error::Failed("nothing was changed".to_owned())),
        }
    }

    /// A file of text, or standard input for "-"; of `bytes_max` at most.
    fn read(&mut self, path: &Path, bytes_max: usize) -> Result<String, Error> {
        let mut text = String::new();
        let read = self.open(path)?.take(bytes_max as u64 + 1).read_to_string(&mut text);
        match read.map_err(|error| failed(path, &error))? {
            length if length > bytes_max => Err(failed(path, &format_args!("has more than {bytes_max} bytes"))),
            _ => Ok(text),
        }
    }

    /// A password: the first line of a file, or of standard input for "-", without its end.
    fn first_line(&mut self, path: &Path) -> Result<Secret, Error> {
        let source = self.open(path)?;
        credentials::first_line(path, source)
    }

    fn open(&mut self, path: &Path) -> Result<Box<dyn Read + '_>, Error> {
        if path == Path::new("-") {
            return Ok(Box::new(&mut *self.stdin));
        }
        Ok(Box::new(File::open(path).map_err(|error| failed(path, &error))?))
    }

    /// Lists a collection that comes in pages: up to `wanted` rows of it, or all.
    async fn pages<T: Serialize + DeserializeOwned, Q: Serialize>(
        &mut self,
        path: &str,
        what: &str,
        wanted: Option<u32>,
        query: impl Fn(u32, Option<String>) -> Q,
        table: fn(&[T]) -> Table,
    ) -> Result<(), Error> {
        let wanted = wanted.map_or(usize::MAX, |rows| rows as usize);
        let mut items: Vec<T> = Vec::new();
        let mut cursor = None;
        let more = loop {
            let rows = u32::try_from(wanted - items.len()).unwrap_or(u32::MAX).min(limits::PAGE_ROWS_MAX);
            let page: Page<T> = self.client.page(path, &query(rows, cursor)).await?;
            items.extend(page.items);
            cursor = page.next_cursor;
            if cursor.is_none() || items.len() >= wanted {
                break cursor.is_some();
            }
        };
        self.print(&items, |items| table(items))?;
        if more {
            writeln!(
                self.stderr,
                "redirect-ctl: showing the first {} {what}; use --all, or raise --limit",
                items.len()
            )?;
        }
        Ok(())
    }

    /// Lists a collection that comes in one piece.
    async fn list<T: Serialize + DeserializeOwned>(
        &mut self,
        path: &str,
        table: fn(&[T]) -> Table,
    ) -> Result<(), Error> {
        let page: Page<T> = self.client.get(path).await?;
        self.print(&page.items, |items| table(items))
    }

    async fn get<T: Serialize + DeserializeOwned>(
        &mut self,
        path: &str,
        key: &impl std::fmt::Display,
        table: fn(&[T]) -> Table,
    ) -> Result<(), Error> {
        let item: T = self.client.resource(path, key).await?;
        self.print(&item, |item| table(std::slice::from_ref(item)))
    }
}
