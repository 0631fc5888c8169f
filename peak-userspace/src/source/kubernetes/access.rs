//! Where the API server is and who we are: from a pod's service account, or a kubeconfig.

use std::{path::PathBuf, time::Duration};

use axum::http::Uri;
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client,
    client::ConfigExt,
    config::{Config, KubeConfigOptions, Kubeconfig},
};
use tokio::task::spawn_blocking;
use tower::{BoxError, ServiceBuilder};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// How often the kernel asks after a silent connection.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// From where credentials come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// The service account of the pod that we run in.
    InCluster,
    /// One of a kubeconfig's contexts.
    Kubeconfig {
        /// Its files, in order of precedence.
        files: Vec<PathBuf>,
        /// The context; the file's current one unless named.
        context: Option<String>,
    },
}

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The pod has no service account.
    #[error(
        "can't use the pod's service account: {0}; give the pod one (automountServiceAccountToken), or name a \
         kubeconfig with --kubeconfig FILE"
    )]
    InCluster(#[source] kube::config::InClusterError),
    /// The kubeconfig can't be read, lacks what is asked for or contradicts itself.
    #[error("can't use the kubeconfig {}: {source}", shown(.files))]
    Kubeconfig {
        /// Its files.
        files: Vec<PathBuf>,
        /// Why.
        source: kube::config::KubeconfigError,
    },
    /// A kubeconfig that is used through a proxy.
    #[error("can't use the kubeconfig {}: its cluster has a proxy-url, and Peak speaks to API servers directly", shown(.0))]
    Proxy(Vec<PathBuf>),
    /// Certificates, keys or tokens that can't be used, or that a helper did not give.
    #[error("can't use the credentials for the API server {server}: {source}")]
    Credentials {
        /// Its URL.
        server: String,
        /// Why.
        source: Box<kube::Error>,
    },
}

fn shown(files: &[PathBuf]) -> String {
    let files: Vec<_> = files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    files.join(", ")
}

impl Access {
    /// Reads all that there is to read, and returns a client and the server's URL. Nothing is connected yet.
    pub(super) async fn client(&self) -> Result<(Client, String), AccessError> {
        let config = match self {
            Self::InCluster => Config::incluster().map_err(AccessError::InCluster)?,
            Self::Kubeconfig { files, context } => from_kubeconfig(files, context.clone()).await?,
        };
        let server = config
            .cluster_url
            .to_string()
            .trim_end_matches('/')
            .to_owned();
        // Credentials may come from a helper that is run here, and waited for.
        let client = spawn_blocking(move || connect(&config)).await;
        match client.expect("no panic") {
            Ok(client) => Ok((client, server)),
            Err(source) => Err(AccessError::Credentials {
                server,
                source: Box::new(source),
            }),
        }
    }
}

async fn from_kubeconfig(
    files: &[PathBuf],
    context: Option<String>,
) -> Result<Config, AccessError> {
    let failed = |source| AccessError::Kubeconfig {
        files: files.to_owned(),
        source,
    };
    let kubeconfig = files
        .iter()
        .try_fold(Kubeconfig::default(), |merged, file| {
            merged.merge(Kubeconfig::read_from(file)?)
        })
        .map_err(failed)?;
    let proxied: Vec<_> = kubeconfig
        .clusters
        .iter()
        .filter_map(|named| named.cluster.as_ref())
        .filter(|cluster| {
            cluster
                .proxy_url
                .as_ref()
                .is_some_and(|url| !url.is_empty())
        })
        .filter_map(|cluster| cluster.server.clone())
        .collect();
    let options = KubeConfigOptions {
        context,
        ..KubeConfigOptions::default()
    };
    let config = Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(failed)?;
    let is_ours =
        |server: &String| server.parse::<Uri>().ok().as_ref() == Some(&config.cluster_url);
    if proxied.iter().any(is_ours) {
        return Err(AccessError::Proxy(files.to_owned()));
    }
    Ok(config)
}

/// A client that does what it is told: no retries behind our back, and no log but ours. `HTTPS_PROXY` is not for an agent
/// on which the node's names depend.
fn connect(config: &Config) -> Result<Client, kube::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(KEEPALIVE));
    let tls = config.rustls_https_connector_with_connector(tcp)?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(HttpClient::builder(TokioExecutor::new()).build(tls));
    Ok(Client::new(service, config.default_namespace.clone()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    async fn error(files: Vec<PathBuf>, context: Option<&str>) -> String {
        let access = Access::Kubeconfig {
            files,
            context: context.map(str::to_owned),
        };
        access.client().await.err().unwrap().to_string()
    }

    const KUBECONFIG: &str = r#"
apiVersion: v1
kind: Config
current-context: a
contexts:
- {name: a, context: {cluster: a, user: u}}
- {name: b, context: {cluster: b, user: u}}
clusters:
- {name: a, cluster: {server: "http://192.0.2.1:6443"}}
- {name: b, cluster: {server: "http://192.0.2.2:6443", proxy-url: "http://192.0.2.3:3128"}}
users:
- {name: u, user: {token: t}}
"#;

    #[tokio::test]
    async fn a_kubeconfig_names_server_and_context() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config");
        fs::write(&file, KUBECONFIG).unwrap();
        let access = Access::Kubeconfig {
            files: vec![file.clone()],
            context: None,
        };
        let (_, server) = access.client().await.unwrap();
        assert_eq!(server, "http://192.0.2.1:6443");
        let message = error(vec![file.clone()], Some("b")).await;
        assert!(message.contains("has a proxy-url"), "{message}");
        let message = error(vec![file], Some("c")).await;
        assert!(message.ends_with("context: c"), "{message}");
        let message = error(vec!["/nowhere".into()], None).await;
        assert!(
            message.starts_with("can't use the kubeconfig /nowhere: "),
            "{message}"
        );
    }
}
