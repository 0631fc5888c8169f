//! `peak`: the command.

use std::process::ExitCode;

use peak_userspace::{
    admin, app, check,
    cli::{Cli, Command},
};

fn main() -> ExitCode {
    let done = match Cli::read().command {
        Command::Run(arguments) => app::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Status(arguments) => admin::status(&arguments),
        Command::Lookup(arguments) => admin::lookup(&arguments),
        Command::Kernel(arguments) => admin::kernel(&arguments),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
