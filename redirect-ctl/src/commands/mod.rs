//! The commands of `redirect-ctl`: each asks the API and prints the answer. What they need of the world comes in [`Env`], so that tests
//! call them in process.

mod audit;
mod certificate;
mod class;
mod config;
mod credentials;
mod doctor;
mod dry_run;
mod event;
mod explain;
mod flow;
mod gateway;
mod group;
mod interface;
mod kernel;
mod lint;
mod lock;
mod managed_domain;
mod manual;
mod output;
mod postfix_check;
mod relay;
mod resource;
mod route;
mod stats;
mod status;
mod subscriber;
mod support_bundle;
mod token;
mod top;
mod trace;
mod uninstall;
mod user;
mod version;
mod watch;

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
use serde_json::{Value, json};

use self::output::{Column, Columns, Layout};
use crate::{
    api::{
        client::{self, Client},
        endpoint::Endpoint,
        error::{FieldError, Problem},
    },
    cli::{Cli, Global, Noun, Output},
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
    /// What was compared is not the same.
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
            Self::Client(client::Error::Unreachable { .. } | client::Error::Timeout { .. }) => exit::UNREACHABLE,
            Self::Client(client::Error::Problem(problem)) => match problem.status {
                404 => exit::NOT_FOUND,
                409 | 412 => exit::CONFLICT,
                _ => exit::ERROR,
            },
            Self::Client(client::Error::Answer(_) | client::Error::Unsent(_)) | Self::Print(_) | Self::Failed(_) => {
                exit::ERROR
            }
            Self::Differs => exit::DIFFERS,
        }
    }

    /// For programs: the API's problem as it came, or one like it.
    fn data(&self) -> Value {
        let code = match self {
            Self::Client(client::Error::Problem(problem)) => return json!(problem),
            Self::Client(client::Error::Unreachable { .. } | client::Error::Timeout { .. }) => "unreachable",
            Self::Client(client::Error::Answer(_) | client::Error::Unsent(_)) => "answer",
            Self::Usage(_) => "usage",
            Self::Print(_) => "print",
            Self::Failed(_) => "failed",
            Self::Differs => "differs",
        };
        json!({"code": code, "detail": self.to_string()})
    }

    /// For people: what happened, and a line for each place that is wrong if there are several.
    fn lines(&self) -> Vec<String> {
        let Self::Client(client::Error::Problem(problem)) = self else { return vec![self.to_string()] };
        let Problem { detail, errors, .. } = &**problem;
        let line = |fault: &FieldError| format!("{}: {}", fault.pointer, fault.detail);
        // Often the detail is all of them in one line.
        let (told, untold): (Vec<_>, Vec<_>) = errors.iter().partition(|fault| detail.contains(&fault.detail));
        if untold.is_empty() && told.len() > 1 {
            return told.into_iter().map(line).collect();
        }
        std::iter::once(detail.clone()).chain(untold.into_iter().map(line)).collect()
    }
}

/// Runs `redirect-ctl` with `args` (the first is the program's name) and returns its exit code.
pub async fn run(env: &mut Env<'_>, args: &[String]) -> u8 {
    let Cli { global, noun } = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage(env, &error),
    };
    let layout = layout(env, &global);
    let as_data = matches!(layout.form, Output::Json | Output::Yaml | Output::Ndjson);
    match dispatch(env, layout, global, noun).await {
        Ok(()) => exit::OK,
        // Whoever reads us has seen enough (`| head`); not our error.
        Err(Error::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => exit::OK,
        Err(Error::Differs) => exit::DIFFERS,
        Err(error) => {
            let lines = if as_data { vec![error.data().to_string()] } else { error.lines() };
            let mut start = if as_data { "" } else { "redirect-ctl: " };
            for line in lines {
                // If even that cannot be said, the exit code says it.
                let _ = writeln!(env.stderr, "{start}{}", line.replace(['\n', '\r'], " "));
                start = "  ";
            }
            error.exit_code()
        }
    }
}

fn layout(env: &Env<'_>, global: &Global) -> Layout {
    // https://no-color.org: when present and not an empty string.
    let is_set = |name: &str| (env.getenv)(name).is_some_and(|value| !value.is_empty());
    Layout {
        form: global.output,
        columns: global.columns.clone(),
        sort: global.sort.clone(),
        headers: !global.no_headers,
        pretty: global.output == Output::Json,
        colours: env.is_terminal && !is_set("NO_COLOR") && (env.getenv)("TERM").is_none_or(|term| term != "dumb"),
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

async fn dispatch(env: &mut Env<'_>, layout: Layout, global: Global, noun: Noun) -> Result<(), Error> {
    let endpoint = match (global.host, (env.getenv)("REDIRECT_HOST").filter(|host| !host.is_empty())) {
        (Some(endpoint), _) => endpoint,
        (None, Some(host)) => host.parse().map_err(|invalid| Error::Usage(format!("REDIRECT_HOST: {invalid}")))?,
        (None, None) => Endpoint::Unix(PathBuf::from(DEFAULT_SOCKET)),
    };
    let user = ["SUDO_USER", "USER"].into_iter().find_map(|name| (env.getenv)(name));
    let transport = credentials::transport(env, endpoint, global.credentials)?;
    let mut context = Context {
        client: Client::over(transport, global.timeout).dry_run(global.dry_run),
        user,
        stdout: env.stdout,
        stderr: env.stderr,
        stdin: env.stdin,
        layout,
        is_terminal: env.is_terminal,
        progress: env.progress,
        timeout: global.timeout,
        dry_run: global.dry_run,
        yes: global.yes,
    };
    match command(&mut context, noun).await {
        Err(Error::Client(client::Error::Unsent(unsent))) => dry_run::show(&mut context, &unsent).await,
        done => done,
    }
}

async fn command(context: &mut Context<'_>, noun: Noun) -> Result<(), Error> {
    match noun {
        Noun::Status(watch) => status::run(context, watch).await,
        Noun::Stats(args) => stats::run(context, args).await,
        Noun::Explain(args) => explain::run(context, args).await,
        Noun::Event(verb) => event::run(context, verb).await,
        Noun::Flow(verb) => flow::run(context, verb).await,
        Noun::Trace(args) => trace::run(context, args).await,
        Noun::Lock(verb) => lock::run(context, verb).await,
        Noun::Subscriber(verb) => subscriber::run(context, verb).await,
        Noun::Class(verb) => class::run(context, verb).await,
        Noun::Relay(verb) => relay::run(context, verb).await,
        Noun::Interface(verb) => interface::run(context, verb).await,
        Noun::Gateway(verb) => gateway::run(context, verb).await,
        Noun::Group(verb) => group::run(context, verb).await,
        Noun::Route(verb) => route::run(context, verb).await,
        Noun::Certificate(verb) => certificate::run(context, verb).await,
        Noun::User(verb) => user::run(context, verb).await,
        Noun::Token(verb) => token::run(context, verb).await,
        Noun::Audit(verb) => audit::run(context, verb).await,
        Noun::Config(verb) => config::run(context, verb).await,
        Noun::Lint => lint::run(context).await,
        Noun::ManagedDomain(verb) => managed_domain::run(context, verb).await,
        Noun::PostfixCheck(args) => postfix_check::run(context, &args).await,
        Noun::Uninstall(args) => uninstall::run(context, &args),
        Noun::Doctor(args) => doctor::run(context, &args).await,
        Noun::Top(args) => top::run(context, &args).await,
        Noun::Kernel(verb) => kernel::run(context, verb).await,
        Noun::SupportBundle(args) => support_bundle::run(context, args).await,
        Noun::Version => version::run(context).await,
        Noun::Completion { shell } => manual::completion(context, shell),
        Noun::Man { folder } => manual::man(context, &folder),
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
#[expect(clippy::struct_excessive_bools, reason = "each says something of its own")]
struct Context<'a> {
    client: Client,
    /// Who runs the command, where the environment says it.
    user: Option<String>,
    stdout: &'a mut dyn Write,
    stderr: &'a mut dyn Write,
    stdin: &'a mut dyn Read,
    layout: Layout,
    is_terminal: bool,
    progress: bool,
    /// How long to wait for an answer.
    timeout: Duration,
    /// Nothing may be changed; the client sees to it for what goes to the API.
    dry_run: bool,
    /// Nobody is to be asked.
    yes: bool,
}

impl Context<'_> {
    /// Prints a list.
    fn items<T: Columns + Serialize>(&mut self, items: &[T]) -> Result<(), Error> {
        self.layout.items(self.stdout, items)
    }

    /// Prints one resource: people get it as a list of one.
    fn item<T: Columns + Serialize>(&mut self, item: &T) -> Result<(), Error> {
        match self.layout.form {
            Output::Table | Output::Wide | Output::Name => self.items(std::slice::from_ref(item)),
            Output::Json | Output::Yaml | Output::Ndjson => self.layout.data(self.stdout, item),
        }
    }

    /// Prints an answer: programs get it as it came, people the rows that are made from it.
    fn answer<T>(&mut self, answer: &impl Serialize, columns: &[Column<T>], rows: &[T]) -> Result<(), Error> {
        self.layout.answer(self.stdout, answer, columns, rows)
    }

    /// Prints what was done with the resource of this name, in a sentence for people.
    fn said(&mut self, answer: &impl Serialize, name: &str, text: &str) -> Result<(), Error> {
        match self.layout.form {
            Output::Name => Ok(writeln!(self.stdout, "{name}")?),
            _ => self.done(answer, text),
        }
    }

    /// Prints what was done where nothing has a name.
    fn done(&mut self, answer: &impl Serialize, text: &str) -> Result<(), Error> {
        match self.layout.form {
            Output::Json | Output::Yaml | Output::Ndjson => self.layout.data(self.stdout, answer),
            Output::Table | Output::Wide | Output::Name => Ok(writeln!(self.stdout, "{text}")?),
        }
    }

    /// Tells something beside the data.
    fn note(&mut self, text: &str) -> Result<(), Error> {
        Ok(writeln!(self.stderr, "redirect-ctl: {text}")?)
    }

    /// Asks on `stderr`, since nothing but data goes to `stdout`.
    fn confirm(&mut self, question: &str) -> Result<(), Error> {
        if self.yes || self.dry_run {
            return Ok(());
        }
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
}
