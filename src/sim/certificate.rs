//! A certificate authority for one gateway, with valid and invalid certificates.

use std::io;

use native_tls::{Identity, TlsAcceptor};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};

pub(super) struct Certificates {
    pub(super) acceptor: TlsAcceptor,
    pub(super) expired: TlsAcceptor,
    pub(super) wrong_name: TlsAcceptor,
    pub(super) untrusted: TlsAcceptor,
    /// The authority's certificate, as PEM.
    pub(super) root: String,
}

impl Certificates {
    /// Creates an authority, and certificates for this machine.
    pub(super) fn new() -> io::Result<Self> {
        let authority = authority("simulated authority")?;
        let here = || params(&["localhost", "127.0.0.1", "::1"]);
        let mut expired = here()?;
        expired.not_before = date_time_ymd(2020, 1, 1);
        expired.not_after = date_time_ymd(2021, 1, 1);
        Ok(Self {
            acceptor: acceptor(&here()?, &authority)?,
            expired: acceptor(&expired, &authority)?,
            wrong_name: acceptor(&params(&["gateway.invalid"])?, &authority)?,
            untrusted: acceptor(&here()?, &self::authority("another authority")?)?,
            root: authority.pem(),
        })
    }
}

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> io::Result<Authority> {
    let mut params = CertificateParams::default();
    // Its name must differ from the certificates' names: a certificate whose issuer has the same
    // name counts as self-signed.
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().map_err(io::Error::other)?)
        .map_err(io::Error::other)
}

fn params(names: &[&str]) -> io::Result<CertificateParams> {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).map_err(io::Error::other)?;
    params
        .distinguished_name
        .push(DnType::CommonName, "simulated gateway");
    Ok(params)
}

fn acceptor(params: &CertificateParams, authority: &Authority) -> io::Result<TlsAcceptor> {
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let certificate = params
        .signed_by(&key, authority)
        .map_err(io::Error::other)?;
    let identity =
        Identity::from_pkcs8(certificate.pem().as_bytes(), key.serialize_pem().as_bytes())
            .map_err(io::Error::other)?;
    TlsAcceptor::new(identity).map_err(io::Error::other)
}
