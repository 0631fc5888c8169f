//! The control plane's certificates and keys, made anew for each.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// What the API server's certificate is good for.
const SERVER_NAMES: [&str; 4] = [
    "127.0.0.1",
    "localhost",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// Signs the API server's certificates, and has the key that service accounts' tokens are signed with.
pub(super) struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
    service_accounts: KeyPair,
}

impl Authority {
    pub(super) fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "peak-tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok(Self {
            certificate: params.self_signed(&key)?.pem(),
            issuer: Issuer::new(params, key),
            service_accounts: KeyPair::generate()?,
        })
    }

    /// Its own certificate, as PEM.
    pub(super) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A new certificate and its key for the API server, as PEM.
    pub(super) fn certify_server(&self) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(SERVER_NAMES.map(str::to_owned))?;
        params
            .distinguished_name
            .push(DnType::CommonName, "kube-apiserver");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// What service accounts' tokens are signed with, as PEM.
    pub(super) fn service_account_key(&self) -> String {
        self.service_accounts.serialize_pem()
    }

    /// What they are verified with, as PEM.
    pub(super) fn service_account_public_key(&self) -> String {
        self.service_accounts.public_key_pem()
    }
}
