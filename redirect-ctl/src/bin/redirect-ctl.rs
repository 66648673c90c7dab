//! `redirect-ctl`: see `redirect-ctl --help`.

use std::{
    env,
    io::{self, IsTerminal as _},
    process::ExitCode,
};

use redirect_ctl::commands::{self, Env};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args: Vec<String> = env::args().collect();
    let mut env = Env {
        stdout: &mut io::stdout().lock(),
        stderr: &mut io::stderr().lock(),
        stdin: &mut io::stdin().lock(),
        getenv: &|name| env::var(name).ok(),
        is_terminal: io::stdout().is_terminal(),
        progress: io::stderr().is_terminal(),
    };
    ExitCode::from(commands::run(&mut env, &args).await)
}
