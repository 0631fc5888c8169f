//! What was meant: the settings of `peak run`, from the command line, the environment and a file, checked one by one.

use std::{
    collections::BTreeSet,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use ipnet::IpNet;
use peak_common::abi::MAX_SUBTREE_DEPTHS;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::{
    cli::{DEFAULT_ADMIN, RunArgs, Surroundings},
    fallback::{Upstream, default_forward_for},
    name::Name,
    objects::{self, is_label},
    pods::PodMode,
    records::RecordPolicy,
    source::kubernetes::{Access, KubernetesConfig},
};

/// The longest zone in wire format, in bytes: `hostmaster.<zone>` must fit.
const MAX_ZONE: usize = crate::name::MAX_NAME - "hostmaster.".len();
/// The longest TTL, in seconds: what CoreDNS allows.
const MAX_TTL: u32 = 3600;
/// The longest name of an interface (IFNAMSIZ without the final zero), in bytes.
const MAX_INTERFACE: usize = 15;

/// How the kernel answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Native where the driver can, generic elsewhere.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// Behind the driver, which any interface can.
    Generic,
    /// Not at all: the fallback answers everything.
    Off,
}

impl FromStr for XdpMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "native" => Ok(Self::Native),
            "generic" => Ok(Self::Generic),
            "off" => Ok(Self::Off),
            _ => Err("is none of auto, native, generic and off".to_owned()),
        }
    }
}

/// Where services come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceConfig {
    /// A folder of manifests.
    Manifests(PathBuf),
    /// Kubernetes' API.
    Kubernetes(KubernetesConfig),
}

/// The settings of `peak run`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunConfig {
    /// Where services come from.
    pub source: SourceConfig,
    /// The interfaces on which the kernel answers.
    pub interfaces: Vec<String>,
    /// Where to answer. An unspecified address means every address of its family on the interfaces.
    pub listen: Vec<SocketAddr>,
    /// The zones, at least one, each once.
    pub zones: Vec<Name>,
    /// How the kernel answers.
    pub xdp: XdpMode,
    /// Whom to ask about names outside the zones.
    pub upstreams: Vec<Upstream>,
    /// For whom.
    pub forward_for: Vec<IpNet>,
    /// The TTL of every record, in seconds.
    pub ttl: u32,
    /// The ranges of addresses whose reverse names are all ours.
    pub reverse: Vec<IpNet>,
    /// What is answered about pods.
    pub pods: PodMode,
    /// What is the agent's choice of how services are published.
    pub records: RecordPolicy,
    /// The unix socket for commands.
    pub admin: PathBuf,
    /// Where to serve metrics and health over HTTP, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// One of so many packets is logged by the kernel's program; 0: none.
    pub log_one_in: u32,
}

/// Why settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no TOML, or holds what is no setting.
    #[error("{}:{line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong, naming the key.
        message: String,
    },
    /// A value that makes no sense.
    #[error("{origin}: {problem}")]
    Value {
        /// The setting and its value, as they were written.
        origin: String,
        /// What is wrong with it, and the remedy.
        problem: String,
    },
    /// Manifests, and something about a cluster.
    #[error(
        "--manifests and --{0} exclude each other: services come from a folder or from a cluster's API server, not both"
    )]
    TwoSources(&'static str),
    /// Something that is needed and wasn't said, or what doesn't go together.
    #[error("{0}")]
    Missing(&'static str),
}

impl RunConfig {
    /// Puts together what was typed, what the environment says and what the file says, in this order of precedence.
    pub fn from(arguments: &RunArgs) -> Result<Self, ConfigError> {
        Self::read(arguments)?.fits_together()
    }

    /// As [`Self::from`], of which nothing is answered: there need not be a place for that.
    pub(crate) fn read(arguments: &RunArgs) -> Result<Self, ConfigError> {
        let file = match &arguments.config {
            Some(path) if !path.as_os_str().is_empty() => ConfigFile::read(path)?,
            _ => ConfigFile::default(),
        };
        let settings = Settings {
            arguments,
            file: &file,
        };
        let path = |typed: &Option<PathBuf>, name, from_file| {
            let typed = typed.iter().map(|path| path.display().to_string());
            settings.one(typed, name, from_file, |text| Ok(PathBuf::from(text)))
        };
        let keys = &file.keys;
        let source = source(
            path(&arguments.manifests, "manifests", &keys.manifests)?,
            path(&arguments.kubeconfig, "kubeconfig", &keys.kubeconfig)?,
            settings.one(arguments.context.iter(), "context", &keys.context, |name| {
                Ok(name.to_owned())
            })?,
            settings.all(
                arguments.namespace.iter(),
                "namespace",
                &keys.namespace,
                namespace,
            )?,
            &arguments.surroundings,
        )?;
        let interfaces = settings.all(
            arguments.interface.iter(),
            "interface",
            &keys.interface,
            interface,
        )?;
        let listen = settings.all(arguments.listen.iter(), "listen", &keys.listen, address)?;
        let zones = settings.all(arguments.zone.iter(), "zone", &keys.zone, zone)?;
        let xdp = settings
            .one(arguments.xdp.iter(), "xdp", &keys.xdp, XdpMode::from_str)?
            .unwrap_or_default();
        let upstreams = settings.all(
            arguments.upstream.iter(),
            "upstream",
            &keys.upstream,
            upstream,
        )?;
        let forward_for = settings.all(
            arguments.forward_for.iter(),
            "forward-for",
            &keys.forward_for,
            range,
        )?;
        Ok(Self {
            source,
            listen: listen.unwrap_or_else(|| {
                ["[::]:53", "0.0.0.0:53"]
                    .map(|all| all.parse().expect("an address"))
                    .into()
            }),
            zones: zones.unwrap_or_else(|| vec![Name::parse("cluster.local").expect("a name")]),
            interfaces: interfaces.unwrap_or_default(),
            xdp,
            upstreams: upstreams.unwrap_or_default(),
            forward_for: forward_for.unwrap_or_else(default_forward_for),
            ttl: settings
                .one(arguments.ttl.iter(), "ttl", &keys.ttl, ttl)?
                .unwrap_or(5),
            reverse: settings
                .all(arguments.reverse.iter(), "reverse", &keys.reverse, range)?
                .unwrap_or_default(),
            pods: settings
                .one(arguments.pods.iter(), "pods", &keys.pods, pods)?
                .unwrap_or_default(),
            records: RecordPolicy {
                serving_terminating: settings
                    .one(
                        arguments.serving_terminating.iter(),
                        "serving-terminating",
                        &keys.serving_terminating,
                        truth,
                    )?
                    .unwrap_or_default(),
                pick: settings
                    .one(
                        arguments.answers.iter(),
                        "answers",
                        &keys.answers,
                        objects::pick,
                    )?
                    .unwrap_or_default(),
            },
            admin: path(&arguments.admin, "admin", &keys.admin)?
                .unwrap_or_else(|| DEFAULT_ADMIN.into()),
            metrics: settings.one(arguments.metrics.iter(), "metrics", &keys.metrics, address)?,
            log_one_in: settings
                .one(
                    arguments.log_one_in.iter(),
                    "log-one-in",
                    &keys.log_one_in,
                    one_in,
                )?
                .unwrap_or_default(),
        })
    }

    fn fits_together(self) -> Result<Self, ConfigError> {
        if self.interfaces.is_empty() {
            if self
                .listen
                .iter()
                .any(|listen| listen.ip().is_unspecified())
            {
                return Err(ConfigError::Missing(
                    "nowhere to answer: name an interface with --interface IF, or an address of this node with \
                     --listen ADDRESS:PORT",
                ));
            }
            if matches!(self.xdp, XdpMode::Native | XdpMode::Generic) {
                return Err(ConfigError::Missing(
                    "nowhere to attach to: name an interface with --interface IF, or say --xdp off",
                ));
            }
        }
        let depths: BTreeSet<_> = self
            .zones
            .iter()
            .map(|zone| zone.labels().count())
            .collect();
        if self.pods == PodMode::Insecure
            && depths.len() > MAX_SUBTREE_DEPTHS
            && self.xdp != XdpMode::Off
            && !self.interfaces.is_empty()
        {
            return Err(ConfigError::Missing(
                "the kernel leaves names of pods to the fallback in zones of at most four different numbers of labels: \
                 name zones of fewer, or say --pods verified or --xdp off",
            ));
        }
        Ok(self)
    }
}

/// Finds each setting where it was said first.
struct Settings<'a> {
    arguments: &'a RunArgs,
    file: &'a ConfigFile,
}

impl Settings<'_> {
    /// A setting that is a list, its values each once; `None` if nobody gives it. An empty text is not given; an empty
    /// list in the file is.
    fn all<T: PartialEq>(
        &self,
        typed: impl Iterator<Item = impl AsRef<str>>,
        name: &str,
        from_file: &Key,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<Vec<T>>, ConfigError> {
        let typed: Vec<_> = typed.filter(|value| !value.as_ref().is_empty()).collect();
        let (values, origin): (Vec<String>, _) = match from_file {
            _ if !typed.is_empty() => {
                let origin = match self.arguments.from_environment.contains(name) {
                    true => Origin::Environment,
                    false => Origin::Flag,
                };
                (
                    typed
                        .iter()
                        .map(|value| value.as_ref().to_owned())
                        .collect(),
                    origin,
                )
            }
            Some(key) if !key.get_ref().is_empty() => {
                (key.get_ref().texts(), Origin::File(key.span().start))
            }
            _ => return Ok(None),
        };
        let mut parsed = Vec::new();
        for value in values {
            let item = parse(&value).map_err(|problem| {
                let origin = match origin {
                    Origin::Flag => format!("--{name} {value}"),
                    Origin::Environment => {
                        format!("PEAK_{}={value}", name.replace('-', "_").to_uppercase())
                    }
                    Origin::File(at) => format!(
                        "{}:{}: {name} = {value:?}",
                        self.file.path.display(),
                        self.file.line(at)
                    ),
                };
                ConfigError::Value { origin, problem }
            })?;
            if !parsed.contains(&item) {
                parsed.push(item);
            }
        }
        Ok(Some(parsed))
    }

    /// A setting that is one value.
    fn one<T: PartialEq>(
        &self,
        typed: impl Iterator<Item = impl AsRef<str>>,
        name: &str,
        from_file: &Key,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        if let Some(key) = from_file
            && let Written::List(_) = key.get_ref()
        {
            let message = format!("{name} is one value, not a list");
            return Err(ConfigError::Syntax {
                path: self.file.path.clone(),
                line: self.file.line(key.span().start),
                message,
            });
        }
        Ok(self
            .all(typed, name, from_file, parse)?
            .and_then(|values| values.into_iter().next()))
    }
}

enum Origin {
    Flag,
    Environment,
    /// The value's first byte.
    File(usize),
}

/// A configuration file as it was written.
#[derive(Debug, Default)]
struct ConfigFile {
    path: PathBuf,
    text: String,
    keys: Keys,
}

type Key = Option<Spanned<Written>>;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Keys {
    manifests: Key,
    kubeconfig: Key,
    context: Key,
    namespace: Key,
    interface: Key,
    listen: Key,
    zone: Key,
    xdp: Key,
    upstream: Key,
    forward_for: Key,
    ttl: Key,
    reverse: Key,
    pods: Key,
    answers: Key,
    serving_terminating: Key,
    admin: Key,
    metrics: Key,
    log_one_in: Key,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a text, a number, true, false or a list of texts"
)]
enum Written {
    Text(String),
    Number(i64),
    Truth(bool),
    List(Vec<String>),
}

impl Written {
    /// Whether nothing is said. An empty list says that there is none.
    fn is_empty(&self) -> bool {
        matches!(self, Self::Text(text) if text.is_empty())
    }

    fn texts(&self) -> Vec<String> {
        match self {
            Self::Text(text) => vec![text.clone()],
            Self::Number(number) => vec![number.to_string()],
            Self::Truth(truth) => vec![truth.to_string()],
            Self::List(texts) => texts.clone(),
        }
    }
}

impl ConfigFile {
    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let mut file = Self {
            path: path.to_owned(),
            text,
            keys: Keys::default(),
        };
        file.keys = toml::from_str(&file.text).map_err(|error: toml::de::Error| {
            let at = error.span().map_or(0, |span| span.start);
            let line = file.line(at);
            // A value of the wrong type is told without its key.
            let key = file
                .text
                .lines()
                .nth(line - 1)
                .and_then(|line| line.split_once('='))
                .map(|(key, _)| key.trim());
            let message = match key {
                Some(key) if !error.message().contains(&format!("`{key}`")) => {
                    format!("{key}: {}", error.message())
                }
                _ => error.message().to_owned(),
            };
            ConfigError::Syntax {
                path: path.to_owned(),
                line,
                message,
            }
        })?;
        Ok(file)
    }

    /// The line, from 1, of a byte of the file.
    fn line(&self, at: usize) -> usize {
        1 + self
            .text
            .bytes()
            .take(at)
            .filter(|&byte| byte == b'\n')
            .count()
    }
}

/// What was said about the source goes together, and is enough.
fn source(
    manifests: Option<PathBuf>,
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    namespaces: Option<Vec<String>>,
    surroundings: &Surroundings,
) -> Result<SourceConfig, ConfigError> {
    if let Some(folder) = manifests {
        // What surrounds us was not said to us: a kubeconfig may be there for other tools.
        for (is_given, name) in [
            (kubeconfig.is_some(), "kubeconfig"),
            (context.is_some(), "context"),
            (namespaces.is_some(), "namespace"),
        ] {
            if is_given {
                return Err(ConfigError::TwoSources(name));
            }
        }
        return Ok(SourceConfig::Manifests(folder));
    }
    let files = match kubeconfig {
        Some(file) => vec![file],
        None => surroundings.kubeconfig.clone(),
    };
    let access = match (files.is_empty(), surroundings.in_cluster) {
        (false, _) => Access::Kubeconfig { files, context },
        (true, true) if context.is_some() => {
            return Err(ConfigError::Missing(
                "--context is one of a kubeconfig's: name that with --kubeconfig FILE",
            ));
        }
        (true, true) => Access::InCluster,
        (true, false) => {
            return Err(ConfigError::Missing(
                "nothing to answer from: name a cluster with --kubeconfig FILE (or KUBECONFIG), run as a pod, or name a \
                 folder of Service and EndpointSlice manifests with --manifests DIR",
            ));
        }
    };
    Ok(SourceConfig::Kubernetes(KubernetesConfig {
        access,
        namespaces: namespaces.unwrap_or_default(),
    }))
}

fn namespace(text: &str) -> Result<String, String> {
    match is_label(text) {
        true => Ok(text.to_owned()),
        false => Err("is no name of a namespace: `kubectl get namespaces` lists them".to_owned()),
    }
}

fn interface(text: &str) -> Result<String, String> {
    if text.len() > MAX_INTERFACE
        || text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
        || [".", ".."].contains(&text)
    {
        return Err("is no name of an interface: `ip link` lists those of this node".to_owned());
    }
    Ok(text.to_owned())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let address = SocketAddr::from_str(text).map_err(|_| {
        "is not ADDRESS:PORT, such as 192.0.2.1:53, or [2001:db8::1]:53 with an IPv6 address in brackets".to_owned()
    })?;
    match address.port() {
        0 => Err("names no port: 0 is none that a client could ask".to_owned()),
        _ if address.ip().is_multicast() => {
            Err("is a multicast address: name one of this node's own".to_owned())
        }
        _ => Ok(address),
    }
}

fn zone(text: &str) -> Result<Name, String> {
    let name = Name::parse(text).map_err(|error| format!("is no domain name: {error}"))?;
    match name.as_wire().len() {
        1 => Err("the root can't be a zone: every name would be ours".to_owned()),
        length if length > MAX_ZONE => Err(format!(
            "takes {length} bytes: a zone may take {MAX_ZONE}, so that names fit below it"
        )),
        _ => Ok(name),
    }
}

fn range(text: &str) -> Result<IpNet, String> {
    let net = IpNet::from_str(text).map_err(|_| {
        "is not ADDRESS/LENGTH, such as 10.0.0.0/8 or fd00::/8 (a single address is /32 or /128)".to_owned()
    })?;
    if net != net.trunc() {
        return Err(format!(
            "has bits behind its prefix: is {} meant?",
            net.trunc()
        ));
    }
    Ok(net)
}

fn pods(text: &str) -> Result<PodMode, String> {
    match text {
        "disabled" => Ok(PodMode::Disabled),
        "insecure" => Ok(PodMode::Insecure),
        "verified" => Ok(PodMode::Verified),
        _ => Err("is none of disabled, insecure and verified".to_owned()),
    }
}

fn truth(text: &str) -> Result<bool, String> {
    text.parse()
        .map_err(|_| "is neither true nor false".to_owned())
}

fn ttl(text: &str) -> Result<u32, String> {
    let seconds = text.parse().ok().filter(|seconds| *seconds <= MAX_TTL);
    seconds.ok_or_else(|| format!("is no number of seconds from 0 to {MAX_TTL}"))
}

fn one_in(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| {
        format!(
            "is no number from 0 to {}: 1000 logs one packet in 1000, 0 none",
            u32::MAX
        )
    })
}

fn upstream(text: &str) -> Result<Upstream, String> {
    let upstream = Upstream::from_str(text).map_err(|error| error.to_string())?;
    match upstream.address {
        address if address.port() == 0 => Err("names no port: resolvers listen on 53".to_owned()),
        address if address.ip().is_unspecified() => {
            Err("nobody can be asked at an unspecified address: name the resolver's own".to_owned())
        }
        _ => Ok(upstream),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The least that can be typed.
    fn typed() -> RunArgs {
        RunArgs {
            manifests: Some("m".into()),
            interface: vec!["eth0".into()],
            ..RunArgs::default()
        }
    }

    fn with_file(text: &str) -> (tempfile::NamedTempFile, RunArgs) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let arguments = RunArgs {
            config: Some(file.path().to_owned()),
            ..RunArgs::default()
        };
        (file, arguments)
    }

    /// The message about a file, without its folder.
    fn error(arguments: &RunArgs) -> String {
        let message = RunConfig::from(arguments).unwrap_err().to_string();
        match &arguments.config {
            Some(path) => message.replace(&*path.to_string_lossy(), "FILE"),
            None => message,
        }
    }

    #[test]
    fn defaults() {
        let config = RunConfig::from(&typed()).unwrap();
        assert_eq!(
            config.listen,
            ["[::]:53".parse().unwrap(), "0.0.0.0:53".parse().unwrap()]
        );
        assert_eq!(config.zones, [Name::parse("cluster.local").unwrap()]);
        assert_eq!(
            (config.xdp, config.ttl, config.metrics, config.log_one_in),
            (XdpMode::Auto, 5, None, 0)
        );
        assert_eq!(config.admin, Path::new("/run/peak/admin.sock"));
        assert_eq!(config.upstreams, []);
        let forwards_for = |address: &str| {
            let address: std::net::IpAddr = address.parse().unwrap();
            config
                .forward_for
                .iter()
                .any(|range| range.contains(&address))
        };
        for address in [
            "127.0.0.1",
            "::1",
            "10.1.2.3",
            "172.31.0.1",
            "192.168.0.1",
            "fd00::1",
            "169.254.1.1",
            "fe80::1",
        ] {
            assert!(forwards_for(address), "{address}");
        }
        for address in ["8.8.8.8", "172.32.0.1", "2001:db8::1", "::", "0.0.0.0"] {
            assert!(!forwards_for(address), "{address}");
        }
    }

    #[test]
    fn every_setting_can_stand_in_the_file() {
        let (_file, arguments) = with_file(
            r#"
manifests = "/m"
interface = ["eth0", "eth1"]
listen = "[fd00::1]:53"
zone = ["cluster.local", "Example.", "cluster.local."]
xdp = "native"
upstream = ["192.0.2.53:53", "corp.example=[2001:db8::53]:5353"]
forward-for = []
ttl = 30
admin = "/a"
metrics = "127.0.0.1:9153"
log-one-in = 1000
reverse = ["10.244.0.0/16", "fd00::/8"]
pods = "insecure"
answers = 8
serving-terminating = true
"#,
        );
        let config = RunConfig::from(&arguments).unwrap();
        let name = |text| Name::parse(text).unwrap();
        let expected = RunConfig {
            source: SourceConfig::Manifests("/m".into()),
            interfaces: vec!["eth0".into(), "eth1".into()],
            listen: vec!["[fd00::1]:53".parse().unwrap()],
            zones: vec![name("cluster.local"), name("example")],
            xdp: XdpMode::Native,
            upstreams: vec![
                Upstream {
                    domain: Name::root(),
                    address: "192.0.2.53:53".parse().unwrap(),
                },
                Upstream {
                    domain: name("corp.example"),
                    address: "[2001:db8::53]:5353".parse().unwrap(),
                },
            ],
            forward_for: Vec::new(),
            ttl: 30,
            admin: "/a".into(),
            metrics: Some("127.0.0.1:9153".parse().unwrap()),
            reverse: vec![
                "10.244.0.0/16".parse().unwrap(),
                "fd00::/8".parse().unwrap(),
            ],
            pods: PodMode::Insecure,
            records: RecordPolicy {
                serving_terminating: true,
                pick: 8,
            },
            log_one_in: 1000,
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn what_is_typed_goes_before_the_file() {
        let (_file, arguments) =
            with_file("manifests = \"/m\"\ninterface = \"eth0\"\nttl = 30\nzone = \"a\"");
        let arguments = RunArgs {
            ttl: Some("7".into()),
            zone: vec!["b".into(), "c".into()],
            interface: vec![String::new()],
            ..arguments
        };
        let config = RunConfig::from(&arguments).unwrap();
        assert_eq!(config.ttl, 7);
        assert_eq!(
            config.zones,
            [Name::parse("b").unwrap(), Name::parse("c").unwrap()]
        );
        assert_eq!(
            config.interfaces,
            ["eth0"],
            "an empty variable says nothing"
        );
    }

    #[test]
    fn an_empty_text_in_the_file_says_nothing() {
        let (_file, arguments) = with_file("manifests = \"\"\ninterface = \"eth0\"");
        assert!(error(&arguments).starts_with("nothing to answer from: name a cluster"));
    }

    #[test]
    fn mistakes_in_the_file_are_placed() {
        let cases = [
            (
                "ttl = 5\nttI = 6\n",
                "FILE:2: unknown field `ttI`, expected one of `manifests`",
            ),
            (
                "\nttl = 1.5\n",
                "FILE:2: ttl: expected a text, a number, true, false or a list of texts",
            ),
            ("ttl = \n", "FILE:1: ttl: "),
            (
                "\n\nttl = 3601",
                "FILE:3: ttl = \"3601\": is no number of seconds from 0 to 3600",
            ),
            (
                "ttl = [\"1\", \"2\"]",
                "FILE:1: ttl is one value, not a list",
            ),
            (
                "zone = [\"a\",\n  \"b..c\"]",
                "FILE:1: zone = \"b..c\": is no domain name: a label is empty",
            ),
        ];
        for (text, expected) in cases {
            let (_file, arguments) = with_file(text);
            let arguments = RunArgs {
                config: arguments.config,
                ..typed()
            };
            let message = error(&arguments);
            assert!(message.starts_with(expected), "{text:?}: {message}");
        }
        let gone = RunArgs {
            config: Some("/nowhere/peak.toml".into()),
            ..typed()
        };
        let message = RunConfig::from(&gone).unwrap_err().to_string();
        assert!(
            message.starts_with("can't read the configuration /nowhere/peak.toml: No such file"),
            "{message}"
        );
    }

    #[test]
    fn each_value_is_checked() {
        let list = |value: &str| vec![value.to_owned()];
        let cases = [
            (
                RunArgs {
                    listen: list("10.0.0.1"),
                    ..typed()
                },
                "--listen 10.0.0.1: is not ADDRESS:PORT",
            ),
            (
                RunArgs {
                    listen: list("fd00::1:53"),
                    ..typed()
                },
                "--listen fd00::1:53: is not ADDRESS:PORT",
            ),
            (
                RunArgs {
                    listen: list("[::]:0"),
                    ..typed()
                },
                "--listen [::]:0: names no port",
            ),
            (
                RunArgs {
                    listen: list("[ff02::1]:53"),
                    ..typed()
                },
                "--listen [ff02::1]:53: is a multicast address",
            ),
            (
                RunArgs {
                    interface: list("a/b"),
                    ..typed()
                },
                "--interface a/b: is no name of an interface",
            ),
            (
                RunArgs {
                    zone: list("."),
                    ..typed()
                },
                "--zone .: the root can't be a zone",
            ),
            (
                RunArgs {
                    xdp: Some("fast".into()),
                    ..typed()
                },
                "--xdp fast: is none of auto, native, generic and off",
            ),
            (
                RunArgs {
                    upstream: list("a..b=10.0.0.1:53"),
                    ..typed()
                },
                "--upstream a..b=10.0.0.1:53: \"a..b\" is not a domain",
            ),
            (
                RunArgs {
                    upstream: list("0.0.0.0:53"),
                    ..typed()
                },
                "--upstream 0.0.0.0:53: nobody can be asked",
            ),
            (
                RunArgs {
                    forward_for: list("10.0.0.1"),
                    ..typed()
                },
                "--forward-for 10.0.0.1: is not ADDRESS/LENGTH",
            ),
            (
                RunArgs {
                    forward_for: list("10.1.0.0/8"),
                    ..typed()
                },
                "--forward-for 10.1.0.0/8: has bits behind its prefix: is 10.0.0.0/8 meant?",
            ),
            (
                RunArgs {
                    ttl: Some("-1".into()),
                    ..typed()
                },
                "--ttl -1: is no number of seconds",
            ),
            (
                RunArgs {
                    metrics: Some("9153".into()),
                    ..typed()
                },
                "--metrics 9153: is not ADDRESS:PORT",
            ),
            (
                RunArgs {
                    log_one_in: Some("often".into()),
                    ..typed()
                },
                "--log-one-in often: is no number from 0 to",
            ),
            (
                RunArgs {
                    manifests: None,
                    ..typed()
                },
                "nothing to answer from: name a cluster",
            ),
            (
                RunArgs {
                    interface: Vec::new(),
                    ..typed()
                },
                "nowhere to answer: name an interface",
            ),
            (
                RunArgs {
                    interface: Vec::new(),
                    listen: list("[::1]:53"),
                    xdp: Some("native".into()),
                    ..typed()
                },
                "nowhere to attach to",
            ),
            (
                RunArgs {
                    zone: ["a", "a.b", "a.b.c", "a.b.c.d", "a.b.c.d.e"]
                        .map(str::to_owned)
                        .into(),
                    pods: Some("insecure".into()),
                    ..typed()
                },
                "the kernel leaves names of pods to the fallback in zones of at most four",
            ),
            (
                RunArgs {
                    ttl: Some("x".into()),
                    from_environment: ["ttl".to_owned()].into(),
                    ..typed()
                },
                "PEAK_TTL=x: is no number",
            ),
        ];
        for (arguments, expected) in cases {
            let message = error(&arguments);
            assert!(message.starts_with(expected), "{message}");
        }
        let long = format!("{0}.{0}.{0}.{1}", "a".repeat(60), "b".repeat(60));
        assert!(
            error(&RunArgs {
                zone: list(&long),
                ..typed()
            })
            .contains("a zone may take 244")
        );
    }

    #[test]
    fn a_cluster_or_a_folder() {
        let source = |arguments: RunArgs| match RunConfig::from(&arguments) {
            Ok(config) => Ok(config.source),
            Err(error) => Err(error.to_string()),
        };
        let cluster = || RunArgs {
            manifests: None,
            ..typed()
        };
        let kubernetes = |access, namespaces: &[&str]| {
            SourceConfig::Kubernetes(KubernetesConfig {
                access,
                namespaces: namespaces.iter().map(|name| (*name).to_owned()).collect(),
            })
        };
        let files = |files: &[&str], context: Option<&str>| Access::Kubeconfig {
            files: files.iter().map(PathBuf::from).collect(),
            context: context.map(str::to_owned),
        };
        let surroundings = Surroundings {
            kubeconfig: vec!["a".into(), "b".into()],
            in_cluster: true,
        };
        let arguments = RunArgs {
            kubeconfig: Some("k".into()),
            context: Some("c".into()),
            namespace: vec!["shop".into(), "web".into(), "shop".into()],
            surroundings: surroundings.clone(),
            ..cluster()
        };
        let expected = kubernetes(files(&["k"], Some("c")), &["shop", "web"]);
        assert_eq!(source(arguments.clone()), Ok(expected));
        // Without a flag: KUBECONFIG, then the pod's own.
        let arguments = RunArgs {
            surroundings: surroundings.clone(),
            ..cluster()
        };
        assert_eq!(
            source(arguments),
            Ok(kubernetes(files(&["a", "b"], None), &[]))
        );
        let in_cluster = Surroundings {
            kubeconfig: Vec::new(),
            in_cluster: true,
        };
        let arguments = RunArgs {
            surroundings: in_cluster.clone(),
            ..cluster()
        };
        assert_eq!(source(arguments), Ok(kubernetes(Access::InCluster, &[])));
        let arguments = RunArgs {
            context: Some("c".into()),
            surroundings: in_cluster,
            ..cluster()
        };
        assert!(
            source(arguments)
                .unwrap_err()
                .starts_with("--context is one of")
        );
        // A folder is not disturbed by what is there for other tools, but by what was said.
        let arguments = RunArgs {
            surroundings,
            ..typed()
        };
        assert_eq!(source(arguments), Ok(SourceConfig::Manifests("m".into())));
        for (arguments, flag) in [
            (
                RunArgs {
                    kubeconfig: Some("k".into()),
                    ..typed()
                },
                "--kubeconfig",
            ),
            (
                RunArgs {
                    context: Some("c".into()),
                    ..typed()
                },
                "--context",
            ),
            (
                RunArgs {
                    namespace: vec!["shop".into()],
                    ..typed()
                },
                "--namespace",
            ),
        ] {
            let expected = format!("--manifests and {flag} exclude each other");
            let message = source(arguments).unwrap_err();
            assert!(message.starts_with(&expected), "{message}");
        }
        let arguments = RunArgs {
            kubeconfig: Some("k".into()),
            namespace: vec!["Shop".into()],
            ..cluster()
        };
        let message = source(arguments).unwrap_err();
        assert!(
            message.starts_with("--namespace Shop: is no name of a namespace"),
            "{message}"
        );
    }

    #[test]
    fn without_interfaces_an_address_is_enough() {
        let arguments = RunArgs {
            interface: Vec::new(),
            listen: vec!["[::1]:5353".into()],
            ..typed()
        };
        assert!(RunConfig::from(&arguments).is_ok());
    }
}
