//! `peak`: the command.

use std::process::ExitCode;

use peak_userspace::{
    admin, app, check,
    cli::{Cli, Command},
    export,
};

fn main() -> ExitCode {
    let done = match Cli::read().command {
        Command::Run(arguments) => app::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Status(arguments) => admin::status(&arguments),
        Command::Lookup(arguments) => admin::lookup(&arguments),
        Command::Kernel(arguments) => admin::kernel(&arguments),
        Command::Export(arguments) => export::run(&arguments),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {}", told(&error));
        ExitCode::FAILURE
    })
}

/// An error with its causes in one line, without those that it tells itself.
fn told(error: &anyhow::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .fold(String::new(), |said, cause| match said {
            said if said.is_empty() => cause,
            said if said.contains(&cause) => said,
            said => format!("{said}: {cause}"),
        })
}
