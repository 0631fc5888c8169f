//! What was typed. What it means is [`crate::config`]'s affair.

use std::{
    collections::BTreeSet,
    env,
    ffi::{OsStr, OsString},
    net::IpAddr,
    path::PathBuf,
};

use clap::{
    ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum,
    builder::Resettable, parser::ValueSource,
};

use crate::name::Name;

/// Where the agent takes commands unless told otherwise.
pub const DEFAULT_ADMIN: &str = "/run/peak/admin.sock";

/// Answers DNS queries for Kubernetes services from the network driver.
#[derive(Debug, Parser)]
#[command(
    name = "peak",
    version,
    after_help = "\
Start with a cluster, or with a folder of Service and EndpointSlice manifests:
  peak run --kubeconfig ~/.kube/config --interface eth0
  peak run --manifests manifests/ --interface eth0
  dig @NODE web.shop.svc.cluster.local AAAA
  peak status"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer queries until SIGTERM (a second one ends at once)
    Run(Box<RunArgs>),
    /// Say what is wrong with a folder of manifests: exit status 0 if nothing, 1 on an error, 2 if it can't be read
    Check(CheckArgs),
    /// Show what the running agent does: readiness, zones, interfaces, counters
    #[command(after_help = "\
Examples:
  peak status
  peak status --output json | jq '.interfaces[] | {name, mode, answered, passed}'")]
    Status(AdminArgs),
    /// Show what the running agent answers to a name, and whether the kernel does
    Lookup(LookupArgs),
    /// Let the kernel answer, or have it pass every packet up to the fallback
    Kernel(KernelArgs),
    /// Write what `peak run` would answer as zone files, for other name servers
    Export(Box<ExportArgs>),
}

/// The settings of `peak run`, as they were typed. Empty is not given.
#[derive(Clone, Debug, Default, Args)]
#[command(after_help = "\
Each option is also a variable of the environment and a key of the --config file, without the dashes:
  --forward-for 10.0.0.0/8,fd00::/8      PEAK_FORWARD_FOR=10.0.0.0/8,fd00::/8
  forward-for = [\"10.0.0.0/8\", \"fd00::/8\"]
What is typed goes before the environment, and that before the file. A list replaces a list.
PEAK_LOG filters the log: PEAK_LOG=debug, or PEAK_LOG=info,peak_userspace::fallback=debug.

Exit status: 0 after a signal, when all is answered; 1 if it can't answer, or at a second signal; 2 if settings make no sense.

Examples:
  peak run --kubeconfig /etc/peak/kubeconfig --namespace shop,web --interface eth0
  peak run --manifests manifests/ --interface eth0
  peak run --manifests manifests/ --xdp off --listen '[::1]:5353'
  peak run --config /etc/peak/peak.toml --upstream 192.0.2.53:53 --upstream corp.example=[2001:db8::53]:53")]
pub struct RunArgs {
    /// Folder of Service and EndpointSlice manifests (.yaml, .yml, .json), read with its subfolders and watched, in place
    /// of a cluster
    #[arg(long, value_name = "DIR", env = "PEAK_MANIFESTS")]
    pub manifests: Option<PathBuf>,
    /// How to reach the cluster's API server
    /// [default: the files of KUBECONFIG, or the service account of the pod that this is]
    #[arg(long, value_name = "FILE", env = "PEAK_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME", env = "PEAK_CONTEXT")]
    pub context: Option<String>,
    /// Namespace of the cluster whose services are answered; may be given several times [default: all]
    #[arg(long, value_name = "NS", env = "PEAK_NAMESPACE", value_delimiter = ',')]
    pub namespace: Vec<String>,
    /// Network interface on which the kernel answers; may be given several times
    #[arg(long, value_name = "IF", env = "PEAK_INTERFACE", value_delimiter = ',')]
    pub interface: Vec<String>,
    /// Where to answer.
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        env = "PEAK_LISTEN",
        value_delimiter = ',',
        help = "Where to answer. [::] and 0.0.0.0 mean every address of that family on the named interfaces \
                [default: [::]:53 and 0.0.0.0:53]"
    )]
    pub listen: Vec<String>,
    /// Zone that holds the services; of zones within one another, the longest that fits a name answers
    /// [default: cluster.local]
    #[arg(long, value_name = "ZONE", env = "PEAK_ZONE", value_delimiter = ',')]
    pub zone: Vec<String>,
    /// How the kernel answers: in the driver (native), behind it (generic), the better of both (auto), not at all (off)
    /// [default: auto]
    #[arg(long, value_name = "auto|native|generic|off", env = "PEAK_XDP")]
    pub xdp: Option<String>,
    /// Whom to ask about names outside the zones, or about those within DOMAIN: the longest that fits. Without: REFUSED
    #[arg(
        long,
        value_name = "[DOMAIN=]ADDRESS:PORT",
        env = "PEAK_UPSTREAM",
        value_delimiter = ','
    )]
    pub upstream: Vec<String>,
    /// Clients for whom upstreams are asked; all others get REFUSED
    /// [default: loopback, private, unique-local and link-local ranges]
    #[arg(
        long,
        value_name = "CIDR",
        env = "PEAK_FORWARD_FOR",
        value_delimiter = ','
    )]
    pub forward_for: Vec<String>,
    /// How long answers may be cached, in seconds, 0 to 3600 [default: 5]
    #[arg(long, value_name = "SECONDS", env = "PEAK_TTL")]
    pub ttl: Option<String>,
    /// Range of addresses whose reverse names are ours: an unknown one does not exist. Known ones are answered anyway,
    /// others are upstreams' affair
    #[arg(long, value_name = "CIDR", env = "PEAK_REVERSE", value_delimiter = ',')]
    pub reverse: Vec<String>,
    /// What 10-1-2-3.NAMESPACE.pod.ZONE is: no name (disabled), the address that it spells (insecure), or that if a pod of
    /// the namespace has it (verified) [default: disabled]
    #[arg(long, value_name = "disabled|insecure|verified", env = "PEAK_PODS")]
    pub pods: Option<String>,
    /// How many addresses an answer gives of a service without the annotation peak/answers: drawn anew for each query
    /// [default: all]
    #[arg(long, value_name = "all|one|N", env = "PEAK_ANSWERS")]
    pub answers: Option<String>,
    /// Publish endpoints that still serve while they terminate, of a service that has no ready one
    /// [default: false]
    #[arg(
        long,
        value_name = "true|false",
        env = "PEAK_SERVING_TERMINATING",
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    pub serving_terminating: Option<String>,
    /// Unix socket for `peak status` and its like [default: /run/peak/admin.sock]
    #[arg(long, value_name = "SOCKET", env = "PEAK_ADMIN")]
    pub admin: Option<PathBuf>,
    /// Where to serve /metrics, /healthz and /readyz over HTTP [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT", env = "PEAK_METRICS")]
    pub metrics: Option<String>,
    /// Log one of so many packets with what the kernel program made of it: takes longer than to answer it.
    /// 0: none, at no cost [default: 0]
    #[arg(long, value_name = "N", env = "PEAK_LOG_ONE_IN")]
    pub log_one_in: Option<String>,
    /// TOML file with any of these settings
    #[arg(long, value_name = "FILE", env = "PEAK_CONFIG")]
    pub config: Option<PathBuf>,
    /// The settings that came from the environment, for messages.
    #[arg(skip)]
    pub from_environment: BTreeSet<String>,
    /// What a cluster's tools and pods find in the environment.
    #[arg(skip)]
    pub surroundings: Surroundings,
}

/// What the environment says of a cluster, unasked.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The files of `KUBECONFIG`.
    pub kubeconfig: Vec<PathBuf>,
    /// This is a pod.
    pub in_cluster: bool,
}

impl Surroundings {
    fn read() -> Self {
        let files = env::var_os("KUBECONFIG").unwrap_or_default();
        Self {
            kubeconfig: env::split_paths(&files)
                .filter(|file| !file.as_os_str().is_empty())
                .collect(),
            in_cluster: env::var_os("KUBERNETES_SERVICE_HOST").is_some(),
        }
    }
}

/// What `peak check` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  peak check manifests/
  peak check --zone cluster.local --output json manifests/ | jq '.diagnostics[]'")]
pub struct CheckArgs {
    /// Folder of manifests
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// Zone whose names must fit
    #[arg(
        long,
        value_name = "ZONE",
        env = "PEAK_ZONE",
        value_delimiter = ',',
        default_value = "cluster.local"
    )]
    pub zone: Vec<Name>,
    /// How to say it
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// What every command needs that speaks to a running agent.
#[derive(Debug, Args)]
pub struct AdminArgs {
    /// The agent's socket
    #[arg(long, value_name = "SOCKET", env = "PEAK_ADMIN", default_value = DEFAULT_ADMIN)]
    pub admin: PathBuf,
    /// How to say it
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// What `peak lookup` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  peak lookup web.shop.svc.cluster.local
  peak lookup cluster.local SOA
  peak lookup web.shop.svc.cluster.local --output json | jq .in_kernel")]
pub struct LookupArgs {
    /// The whole name, such as web.shop.svc.cluster.local
    pub name: Name,
    /// The type of record: a mnemonic such as A, or TYPE and a number
    #[arg(value_name = "TYPE", default_value = "AAAA", value_parser = record_type)]
    pub record_type: String,
    /// Which agent, and how to say it.
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// What `peak kernel` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
The switch lasts until the agent ends; `peak status` shows how it stands. With the kernel off, captures on the node see
every query, and `passed: disabled` counts them.")]
pub struct KernelArgs {
    /// on: the kernel answers what it can; off: it passes all up, and stays attached
    #[arg(value_enum)]
    pub state: Switch,
    /// Which agent, and how to say it.
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// What `peak export` is told: where to write to, and the settings of `peak run`.
#[derive(Clone, Debug, Default, Args)]
#[command(after_help = "\
Each zone becomes one master file (RFC 1035, section 5) that BIND, Knot, NSD, PowerDNS, Unbound and CoreDNS's `file` read. It says
at its top what a zone file can't hold of it. Give the same settings as to `peak run`, --config too: those that are not
about zones change nothing.

Exit status: 0 if everything is written; 1 if manifests are broken, the API server doesn't answer or a file can't be
written, and nothing half is; 2 if settings make no sense.

Examples:
  peak export --manifests manifests/ --zone-file > cluster.local.zone
  peak export --manifests manifests/ --zone-file cluster.local.zone --nameserver 192.0.2.53
  peak export --kubeconfig ~/.kube/config --reverse 10.244.0.0/16,fd00:10:244::/48 --zone-file zones/
  peak export --config /etc/peak/peak.toml --zone-file zones/")]
pub struct ExportArgs {
    /// The file for the zone, or a folder (that there is, or with a slash at its end) for a file named after each zone; without
    /// a value, standard output
    #[arg(
        long,
        value_name = "PATH",
        required = true,
        num_args = 0..=1,
        default_missing_value = "-"
    )]
    pub zone_file: PathBuf,
    /// Address of the zones' name server, ns.dns.ZONE; may be given several times
    /// [default: those of --listen that are no wildcards, else ::1 and 127.0.0.1]
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub nameserver: Vec<IpAddr>,
    /// What is answered, as for `peak run`.
    #[command(flatten)]
    pub run: RunArgs,
}

/// The settings of `peak run` that are about what zones hold.
const ABOUT_ZONES: [&str; 11] = [
    "manifests",
    "kubeconfig",
    "context",
    "namespace",
    "zone",
    "listen",
    "ttl",
    "reverse",
    "pods",
    "serving_terminating",
    "config",
];

/// Who reads what a command says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// People
    #[default]
    Text,
    /// Programs: one JSON object
    Json,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// The kernel answers
    On,
    /// The kernel passes everything up
    Off,
}

impl Cli {
    /// Reads the command line and the environment. Ends the process, with usage and status 2, if they make no sense.
    pub fn read() -> Self {
        Self::of(env::args_os()).unwrap_or_else(|error| error.exit())
    }

    /// Reads a command line, program's name first, and the environment.
    ///
    /// # Errors
    /// They make no sense; or help or the version is asked for.
    pub fn of<W: Into<OsString> + Clone>(
        words: impl IntoIterator<Item = W>,
    ) -> Result<Self, clap::Error> {
        let matches = definition().try_get_matches_from(words)?;
        Self::from_matches(&matches).map_err(|error| error.format(&mut definition()))
    }

    fn from_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut cli = Self::from_arg_matches(matches)?;
        let arguments = match &mut cli.command {
            Command::Run(arguments) => Some(&mut **arguments),
            Command::Export(arguments) => Some(&mut arguments.run),
            _ => None,
        };
        if let (Some(arguments), Some((_, matches))) = (arguments, matches.subcommand()) {
            let ids = matches.ids().map(|id| id.as_str());
            let is_from_environment =
                |id: &&str| matches.value_source(id) == Some(ValueSource::EnvVariable);
            arguments.from_environment = ids
                .filter(is_from_environment)
                .map(|id| id.replace('_', "-"))
                .collect();
            arguments.surroundings = Surroundings::read();
        }
        Ok(cli)
    }
}

/// The command line's definition, without the variables of the environment that are set to nothing: they say nothing.
fn definition() -> clap::Command {
    let is_empty = |variable: &OsStr| env::var_os(variable).is_some_and(|value| value.is_empty());
    let own: Vec<_> = RunArgs::augment_args(clap::Command::new(""))
        .get_arguments()
        .map(|argument| argument.get_id().clone())
        .filter(|id| !ABOUT_ZONES.contains(&id.as_str()))
        .collect();
    let command = Cli::command().mut_subcommand("export", |command| {
        command.mut_args(|argument| {
            let hide = own.contains(argument.get_id());
            argument.hide(hide)
        })
    });
    command.mut_subcommands(|command| {
        command.mut_args(|argument| match argument.get_env() {
            Some(variable) if is_empty(variable) => argument.env(Resettable::Reset),
            _ => argument,
        })
    })
}

/// A record type as it is written: `AAAA`, `TYPE65`.
fn record_type(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    let number = upper.strip_prefix("TYPE").filter(|rest| !rest.is_empty());
    if number.is_some_and(|number| number.parse::<u16>().is_err())
        || !upper.starts_with(|c: char| c.is_ascii_alphabetic())
    {
        return Err(
            "a record type is a mnemonic such as AAAA, or TYPE and a number up to 65535".to_owned(),
        );
    }
    Ok(upper)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Cli, clap::Error> {
        Cli::of(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn lists_are_repeated_or_joined() {
        let cli = read("peak run --interface eth0,eth1 --interface eth2 --ttl 7").unwrap();
        let Command::Run(run) = cli.command else {
            panic!("{cli:?}")
        };
        assert_eq!(run.interface, ["eth0", "eth1", "eth2"]);
        assert_eq!(run.ttl.as_deref(), Some("7"));
        assert!(run.from_environment.is_empty() && run.zone.is_empty());
    }

    #[test]
    fn an_export_takes_the_settings_of_a_run() {
        let line =
            "peak export --zone-file --manifests m --interface eth0 --nameserver ::1,10.0.0.1";
        let Command::Export(export) = read(line).unwrap().command else {
            panic!("{line} is no export")
        };
        assert_eq!(export.zone_file, PathBuf::from("-"));
        assert_eq!(export.run.manifests, Some("m".into()));
        assert_eq!(export.nameserver.len(), 2);
        assert!(export.run.from_environment.is_empty());
        assert_eq!(
            read("peak export --manifests m").unwrap_err().exit_code(),
            2
        );

        let help = read("peak export --help").unwrap_err().to_string();
        for id in ABOUT_ZONES {
            let flag = format!("--{}", id.replace('_', "-"));
            assert!(help.contains(&flag), "{flag} is not in the help:\n{help}");
        }
        assert!(
            !help.contains("--interface") && !help.contains("--upstream"),
            "{help}"
        );
        assert!(
            help.contains("peak export --manifests manifests/ --zone-file >"),
            "{help}"
        );
    }

    #[test]
    fn commands_for_a_running_agent() {
        let cli =
            read("peak lookup Web.shop.svc.cluster.local type65 --admin /a --output json").unwrap();
        let Command::Lookup(lookup) = cli.command else {
            panic!("{cli:?}")
        };
        assert_eq!(lookup.name.to_string(), "web.shop.svc.cluster.local.");
        assert_eq!(
            (&*lookup.record_type, lookup.admin.output),
            ("TYPE65", Output::Json)
        );
        let cli = read("peak kernel off").unwrap();
        let Command::Kernel(kernel) = cli.command else {
            panic!("{cli:?}")
        };
        assert_eq!(
            (kernel.state, kernel.admin.output),
            (Switch::Off, Output::Text)
        );
        for wrong in [
            "peak",
            "peak kernel",
            "peak lookup a..b",
            "peak lookup a TYPE65536",
            "peak lookup a 1",
            "peak x",
        ] {
            assert_eq!(read(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
    }
}
