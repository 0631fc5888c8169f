//! A real Kubernetes control plane on loopback: etcd, the API server, and the controllers that tests have use for.
//!
//! There is no kubelet: pods get their status, and with it their addresses, from the test.

mod pki;
mod reach;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    env, fs,
    future::Future,
    iter,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use k8s_openapi::{
    ByteString,
    api::{
        authentication::v1::TokenRequest,
        core::v1::{Namespace as KubernetesNamespace, ServiceAccount},
    },
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DynamicObject, GroupVersionKind, ObjectMeta, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    discovery::{self, ApiResource, Scope},
};
use rustix::fs::{Mode, chmod};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{runtime::Runtime, time::timeout};

use self::pki::Authority;
pub use self::reach::Reach;
use crate::{Namespace, Running, eventually, process::build_folder, scratch};

/// How long a component may take from its start until it works, on a machine with much else to do.
const START: Duration = Duration::from_secs(90);
/// How long the API server may take to say whether it is ready.
const ANSWER: Duration = Duration::from_secs(2);
/// How long to leave the API server alone after it was not ready: a question costs it a TLS handshake.
const PAUSE: Duration = Duration::from_millis(50);
/// Who the fields belong to that [`ControlPlane::apply`] sets.
const FIELD_MANAGER: &str = "peak-tests";
/// Which of the controllers run. The others have nothing to do without a kubelet, or take longer to start than to use.
const CONTROLLERS: &str = "endpointslice-controller,serviceaccount-controller,replicaset-controller,deployment-controller";
/// The folder of etcd's data, in that of the control plane.
const ETCD_DATA: &str = "etcd";
/// The Services' own addresses.
const SERVICE_RANGES: &str = "10.96.0.0/16,fd00:10:96::/112";

/// A part of the control plane with a process of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// Where everything is stored.
    Etcd,
    /// `kube-apiserver`.
    ApiServer,
    /// `kube-controller-manager`, which writes EndpointSlices for Services with a selector.
    ControllerManager,
}

impl Component {
    /// The name of its program.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
        }
    }
}

/// A running control plane with nothing in it but what Kubernetes itself puts there. It ends with its guard, and with this
/// process, in whatever way that ends.
pub struct ControlPlane {
    processes: BTreeMap<Component, Running>,
    client: Client,
    runtime: Runtime,
    authority: Authority,
    ports: Ports,
    logs: PathBuf,
    folder: TempDir,
}

/// Where the components listen on 127.0.0.1.
struct Ports {
    etcd: u16,
    etcd_peer: u16,
    api_server: u16,
}

impl ControlPlane {
    /// Starts one. Its logs are in [`Self::logs`], under `label`, and stay there until the next one of that name.
    ///
    /// # Errors
    /// A program is not there (with the remedy), or a component ends or does not become ready: with what it said last.
    pub fn start(label: &str) -> Result<Self> {
        let folder = scratch()?;
        // Keys and tokens are nobody else's business.
        chmod(folder.path(), Mode::RWXU)?;
        let logs = make_logs(label)?;
        let [etcd, etcd_peer, api_server] = free_ports()?;
        let ports = Ports {
            etcd,
            etcd_peer,
            api_server,
        };
        let authority = Authority::new()?;
        // Numbers that nobody on this machine can know beforehand.
        let [admin, controllers] = [(); 2].map(|()| format!("{:032x}", fastrand::u128(..)));
        for (file, contents) in [
            (
                "tokens.csv",
                format!(
                    "{admin},admin,1,system:masters\n{controllers},system:kube-controller-manager,2\n"
                ),
            ),
            ("sa.key", authority.service_account_key()),
            ("sa.pub", authority.service_account_public_key()),
        ] {
            fs::write(folder.path().join(file), contents)?;
        }
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.api_server));
        let admin = write_kubeconfig(folder.path(), server, &authority, "admin", &admin)?;
        write_kubeconfig(
            folder.path(),
            server,
            &authority,
            Component::ControllerManager.name(),
            &controllers,
        )?;

        // Its one thread keeps connections alive while nobody waits for an answer.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("control-plane")
            .enable_all()
            .build()?;
        let client = runtime.block_on(async {
            let kubeconfig = Kubeconfig::read_from(&admin)?;
            let config =
                Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            anyhow::Ok(Client::try_from(config)?)
        })?;

        let mut plane = Self {
            processes: BTreeMap::new(),
            client,
            runtime,
            authority,
            ports,
            logs,
            folder,
        };
        plane.renew_certificate()?;
        plane.launch(Component::Etcd)?;
        plane.restart(Component::ApiServer)?;
        plane.restart(Component::ControllerManager)?;
        plane
            .wait("the controllers", async |plane| {
                let accounts: Api<ServiceAccount> = Api::namespaced(plane.client(), "default");
                matches!(accounts.get_opt("default").await, Ok(Some(_)))
            })
            .map(|()| plane)
    }

    /// One for all tests of a process that leave it as a whole alone and keep to namespaces of their own. It ends with
    /// its last user.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn shared() -> Result<Arc<Self>> {
        static SHARED: Mutex<Weak<ControlPlane>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plane) = shared.upgrade() {
            return Ok(plane);
        }
        let plane = Arc::new(Self::start("shared")?);
        *shared = Arc::downgrade(&plane);
        Ok(plane)
    }

    /// The kubeconfig of somebody who may do anything. It holds all it needs, so that a copy will do.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("admin.kubeconfig")
    }

    /// The kubeconfig of a service account. The account is made if need be, and may do what the test binds to it.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn kubeconfig_of(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        let token = self.token_of(namespace, account)?;
        let user = format!("{namespace}-{account}");
        write_kubeconfig(
            self.folder.path(),
            self.address(),
            &self.authority,
            &user,
            &token,
        )
    }

    /// What a pod of a service account finds in `/var/run/secrets/kubernetes.io/serviceaccount`. The account is made if need
    /// be, and may do what the test binds to it.
    ///
    /// # Errors
    /// The API server refuses, or there is no room.
    pub fn service_account(&self, namespace: &str, account: &str) -> Result<TempDir> {
        let token = self.token_of(namespace, account)?;
        let folder = scratch()?;
        for (file, contents) in [
            ("token", &*token),
            ("ca.crt", self.authority.certificate()),
            ("namespace", namespace),
        ] {
            fs::write(folder.path().join(file), contents)?;
        }
        Ok(folder)
    }

    fn token_of(&self, namespace: &str, account: &str) -> Result<String> {
        self.apply(
            &json!({
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"namespace": namespace, "name": account},
            })
            .to_string(),
        )?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), namespace);
        // With no wishes: for an hour, and for the API server.
        let (params, request) = (PostParams::default(), TokenRequest::default());
        let answer = self.run(accounts.create_token_request(account, &params, &request))?;
        let token = answer.status.and_then(|status| status.token);
        token.context("the API server has granted no token")
    }

    /// Where the API server listens, with TLS.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.api_server).into()
    }

    /// Makes the API server reachable at [`Self::address`] in `namespace`, too, so that the same kubeconfig is good there.
    /// It is out of reach again, and connections end, when the guard is dropped.
    ///
    /// # Errors
    /// The address is taken there.
    pub fn reach_from(&self, namespace: &Namespace) -> Result<Reach> {
        Reach::new(&self.runtime, namespace, self.address())
    }

    /// A client that may do anything, to be used in [`Self::run`].
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Runs a task to its end.
    pub fn run<F: Future>(&self, task: F) -> F::Output {
        self.runtime.block_on(task)
    }

    /// The folder of the components' logs: `logs/LABEL` beside the programs of this workspace.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Applies all documents of a YAML text (server-side apply, by force), of any kind that the API server knows. Namespaces
    /// that they name are made.
    ///
    /// # Errors
    /// It isn't YAML, or the API server refuses an object: with its name.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(manifests).context("not a manifest")?;
        let objects = documents
            .into_iter()
            .filter(|document| !document.is_null())
            .map(|document| serde_json::from_value(document).context("not an object of Kubernetes"))
            .collect::<Result<Vec<DynamicObject>>>()?;
        self.run(self.apply_all(objects))
    }

    /// [`Self::apply`] for each `.yaml` file of a folder, in the order of their names.
    ///
    /// # Errors
    /// As [`Self::apply`], naming the file; or there is no such file.
    pub fn apply_folder(&self, folder: &Path) -> Result<()> {
        let files = fs::read_dir(folder)
            .and_then(|entries| {
                entries
                    .map(|entry| Ok(entry?.path()))
                    .collect::<Result<BTreeSet<_>, _>>()
            })
            .with_context(|| format!("cannot read {}", folder.display()))?;
        let mut manifests = files
            .iter()
            .filter(|file| file.extension().is_some_and(|kind| kind == "yaml"))
            .peekable();
        if manifests.peek().is_none() {
            bail!("{} has no manifest", folder.display());
        }
        for file in manifests {
            fs::read_to_string(file)
                .map_err(Into::into)
                .and_then(|text| self.apply(&text))
                .with_context(|| format!("cannot apply {}", file.display()))?;
        }
        Ok(())
    }

    async fn apply_all(&self, objects: Vec<DynamicObject>) -> Result<()> {
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let namespaces = Api::<KubernetesNamespace>::all(self.client());
        let mut made = BTreeSet::new();
        let mut kinds: HashMap<GroupVersionKind, (ApiResource, Scope)> = HashMap::new();
        for object in objects {
            let types = object.types.as_ref().context("an object without a kind")?;
            let kind = GroupVersionKind::try_from(types)?;
            let name = object.name_any();
            if let Some(namespace) = object.namespace()
                && made.insert(namespace.clone())
            {
                let wanted = KubernetesNamespace {
                    metadata: ObjectMeta {
                        name: Some(namespace.clone()),
                        ..Default::default()
                    },
                    ..Default::default()
                };
                namespaces
                    .patch(&namespace, &params, &Patch::Apply(wanted))
                    .await
                    .with_context(|| format!("namespace {namespace}"))?;
            }
            if !kinds.contains_key(&kind) {
                let (resource, capabilities) = discovery::pinned_kind(&self.client, &kind).await?;
                kinds.insert(kind.clone(), (resource, capabilities.scope));
            }
            let (resource, scope) = &kinds[&kind];
            Api::<DynamicObject>::dynamic(self.client(), resource, scope)
                .constrain(object.namespace().as_deref().unwrap_or("default"))
                .patch(&name, &params, &Patch::Apply(&object))
                .await
                .with_context(|| format!("{} {name}", kind.kind))?;
        }
        Ok(())
    }

    /// Kills a component (SIGKILL). What was stored stays.
    pub fn kill(&mut self, component: Component) {
        self.processes.remove(&component);
    }

    /// Starts a component, killing it first if it runs, and waits until the API server is ready, unless that was killed.
    /// Addresses and tokens stay as they were.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn restart(&mut self, component: Component) -> Result<()> {
        self.launch(component)?;
        if !self.processes.contains_key(&Component::ApiServer) {
            return Ok(());
        }
        self.wait("the API server", async |plane| {
            let Ok(request) = http::Request::get("/readyz").body(Vec::new()) else {
                return false;
            };
            plane.client.request_text(request).await.is_ok()
        })
    }

    /// Takes a copy of what etcd holds. It must have been killed: a file that is written to is no copy.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn save_etcd(&self) -> Result<TempDir> {
        let saved = scratch()?;
        copy_folder(&self.folder.path().join(ETCD_DATA), saved.path())?;
        Ok(saved)
    }

    /// Puts a copy in the place of what etcd holds, or nothing at all: it has lost everything. It must have been killed, as
    /// must the API server, which knows what was there.
    ///
    /// # Errors
    /// The copy is gone, or there is no room for it.
    pub fn put_etcd_back(&self, saved: Option<&TempDir>) -> Result<()> {
        let data = self.folder.path().join(ETCD_DATA);
        fs::remove_dir_all(&data)?;
        saved.map_or(Ok(()), |saved| copy_folder(saved.path(), &data))
    }

    /// Gives the API server another certificate of the same authority, which it uses from its next start on.
    ///
    /// # Errors
    /// The files can't be written.
    pub fn renew_certificate(&self) -> Result<()> {
        let (certificate, key) = self.authority.certify_server()?;
        fs::write(self.folder.path().join("server.crt"), certificate)?;
        fs::write(self.folder.path().join("server.key"), key)?;
        Ok(())
    }

    /// Makes sure that every component that was started, and not killed, still runs.
    ///
    /// # Errors
    /// One has ended by itself: with what it said last.
    pub fn check(&mut self) -> Result<()> {
        for (component, process) in &mut self.processes {
            if let Some(status) = process.ended()? {
                let name = component.name();
                bail!(
                    "{name} ended ({status}). It said last:\n{}(all of it: {})",
                    last_lines(&process.log()),
                    self.logs.join(name).with_extension("log").display()
                );
            }
        }
        Ok(())
    }

    /// Starts a component's process.
    fn launch(&mut self, component: Component) -> Result<()> {
        self.kill(component);
        let mut command = Command::new(asset(component.name())?);
        command
            .current_dir(self.folder.path())
            .args(self.arguments(component));
        let log = self.logs.join(component.name()).with_extension("log");
        self.processes
            .insert(component, Running::start_tied(command, &log)?);
        Ok(())
    }

    /// What a component is started with. Its files are in its working directory.
    fn arguments(&self, component: Component) -> Vec<String> {
        let Ports {
            etcd,
            etcd_peer,
            api_server,
        } = self.ports;
        let text = match component {
            Component::Etcd => format!(
                "--data-dir={ETCD_DATA} --unsafe-no-fsync --logger=zap --log-outputs=stderr \
                 --listen-client-urls=http://127.0.0.1:{etcd} --advertise-client-urls=http://127.0.0.1:{etcd} \
                 --listen-peer-urls=http://127.0.0.1:{etcd_peer} --initial-advertise-peer-urls=http://127.0.0.1:{etcd_peer} \
                 --initial-cluster=default=http://127.0.0.1:{etcd_peer}"
            ),
            Component::ApiServer => format!(
                "--etcd-servers=http://127.0.0.1:{etcd} --bind-address=127.0.0.1 --secure-port={api_server} \
                 --advertise-address=127.0.0.1 --endpoint-reconciler-type=none \
                 --tls-cert-file=server.crt --tls-private-key-file=server.key \
                 --service-cluster-ip-range={SERVICE_RANGES} \
                 --service-account-issuer=https://kubernetes.default.svc \
                 --service-account-key-file=sa.pub --service-account-signing-key-file=sa.key \
                 --token-auth-file=tokens.csv --authorization-mode=RBAC"
            ),
            Component::ControllerManager => format!(
                "--kubeconfig={}.kubeconfig --secure-port=0 --leader-elect=false \
                 --use-service-account-credentials=true --service-account-private-key-file=sa.key \
                 --controllers={CONTROLLERS}",
                component.name()
            ),
        };
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// Waits until `condition`, which is asked again when it takes too long, while every component runs.
    fn wait(&mut self, what: &str, condition: impl AsyncFn(&Self) -> bool) -> Result<()> {
        let waited = eventually(what, START, || {
            self.check()?;
            let held = self.run(async {
                let held = timeout(ANSWER, condition(self)).await.unwrap_or(false);
                if !held {
                    tokio::time::sleep(PAUSE).await;
                }
                held
            });
            Ok(held.then_some(()))
        });
        waited.with_context(|| format!("the control plane's logs are in {}", self.logs.display()))
    }
}

/// Copies a folder with all that is below it. Its owner alone may look in, as etcd wants it.
fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    chmod(to, Mode::RWXU)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// Ports of 127.0.0.1 that neither TCP nor UDP uses, below those that the kernel lends to clients (from 32768 on by
/// default): while a server is down, nobody gets its port by chance. A client of loopback that tries again and again could
/// even connect to itself.
pub(crate) fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let free = iter::repeat_with(|| fastrand::u16(10_000..32_768)).take(1000);
    // Each is held until all are known, so that they differ.
    let held: Vec<_> = free
        .filter_map(|port| {
            let address = (Ipv4Addr::LOCALHOST, port);
            let sockets = (
                TcpListener::bind(address).ok()?,
                UdpSocket::bind(address).ok()?,
            );
            Some((port, sockets))
        })
        .take(N)
        .collect();
    let ports: Vec<_> = held.iter().map(|(port, _)| *port).collect();
    ports.try_into().ok().context("127.0.0.1 has no free ports")
}

/// Writes `USER.kubeconfig`.
fn write_kubeconfig(
    folder: &Path,
    server: SocketAddr,
    authority: &Authority,
    user: &str,
    token: &str,
) -> Result<PathBuf> {
    let name = "peak";
    // JSON is YAML.
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": name,
            "cluster": {
                "server": format!("https://{server}"),
                "certificate-authority-data": ByteString(authority.certificate().into()),
            },
        }],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
        "current-context": name,
    });
    let path = folder.join(format!("{user}.kubeconfig"));
    fs::write(&path, format!("{config:#}\n"))?;
    Ok(path)
}

/// A program that this workspace doesn't make: in a folder of `PEAK_ASSETS`, which `cargo xtask` sets, or else in
/// `KUBEBUILDER_ASSETS`, where operators' tests look, too.
///
/// # Errors
/// It is in none of them.
pub fn asset(name: &str) -> Result<PathBuf> {
    let folders = env::var_os("PEAK_ASSETS")
        .or_else(|| env::var_os("KUBEBUILDER_ASSETS"))
        .unwrap_or_default();
    env::split_paths(&folders)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "{name} is not in {folders:?}: run this with `cargo xtask`, which builds it, or set KUBEBUILDER_ASSETS to \
                 a folder that has it"
            )
        })
}

/// Makes an empty folder for logs. It belongs to whom the build belongs to, who may run tests with sudo.
pub(crate) fn make_logs(label: &str) -> Result<PathBuf> {
    let build = build_folder()?;
    let logs = build.join("logs");
    let folder = logs.join(label);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let owner = fs::metadata(&build)?;
    for made in [&logs, &folder] {
        chown(made, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(folder)
}

/// As much of a log as fits into an error.
pub(crate) fn last_lines(log: &str) -> String {
    let start = log.lines().count().saturating_sub(20);
    log.lines()
        .skip(start)
        .flat_map(|line| [line, "\n"])
        .collect()
}
