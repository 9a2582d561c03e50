//! A certificate authority of one gateway's own.

use std::io;

use native_tls::{Identity, TlsAcceptor};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

pub(super) struct Certificates {
    pub(super) acceptor: TlsAcceptor,
    /// The authority's certificate, as PEM.
    pub(super) root: String,
}

impl Certificates {
    /// An authority, and a certificate of it for this machine.
    pub(super) fn new() -> io::Result<Self> {
        let root_key = KeyPair::generate().map_err(io::Error::other)?;
        let mut root = CertificateParams::default();
        // The two need names of their own: an issuer of its own name would be taken for itself.
        root.distinguished_name.push(DnType::CommonName, "simulated authority");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root_certificate = root.self_signed(&root_key).map_err(io::Error::other)?;
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let names = ["localhost", "127.0.0.1", "::1"].map(String::from);
        let mut params = CertificateParams::new(names).map_err(io::Error::other)?;
        params.distinguished_name.push(DnType::CommonName, "simulated gateway");
        let certificate = params.signed_by(&key, &Issuer::new(root, &root_key)).map_err(io::Error::other)?;
        let identity = Identity::from_pkcs8(certificate.pem().as_bytes(), key.serialize_pem().as_bytes())
            .map_err(io::Error::other)?;
        Ok(Self { acceptor: TlsAcceptor::new(identity).map_err(io::Error::other)?, root: root_certificate.pem() })
    }
}
