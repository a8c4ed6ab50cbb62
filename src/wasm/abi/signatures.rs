//! `verify_signature` and `sign`: RSA (PKCS #1 v1.5) and ECDSA (P-256, P-384, P-521) over SHA-1 and SHA-2.
//!
//! Keys are `SubjectPublicKeyInfo` and `PrivateKeyInfo`, in DER or PEM. As Envoy, a key that makes no sense is an answer
//! with a reason, and no key at all, or two, is a bad argument.

use base64::Engine as _;
use p256::ecdsa::signature::hazmat::{PrehashSigner as _, PrehashVerifier as _};
use rsa::pkcs1::DecodeRsaPrivateKey as _;
use rsa::pkcs8::{DecodePrivateKey as _, DecodePublicKey as _};
use sha1::Sha1;
use sha2_signing::{Digest, Sha224, Sha256, Sha384, Sha512};

use super::Status;

/// Longest PEM of a key.
const MAX_PEM: usize = 64 << 10;

/// `VerifySignatureArguments`.
#[derive(Clone, PartialEq, prost::Message)]
struct VerifyArguments {
    #[prost(string, tag = "1")]
    hash_function: String,
    #[prost(bytes = "vec", tag = "2")]
    public_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    signature: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    text: Vec<u8>,
    #[prost(string, tag = "5")]
    public_key_pem: String,
}

/// `VerifySignatureResult`.
#[derive(Clone, PartialEq, prost::Message)]
struct VerifyResult {
    #[prost(bool, tag = "1")]
    result: bool,
    #[prost(string, tag = "2")]
    error: String,
}

/// `SignArguments`.
#[derive(Clone, PartialEq, prost::Message)]
struct SignArguments {
    #[prost(string, tag = "1")]
    hash_function: String,
    #[prost(bytes = "vec", tag = "2")]
    private_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    text: Vec<u8>,
    #[prost(string, tag = "4")]
    private_key_pem: String,
}

/// `SignResult`.
#[derive(Clone, PartialEq, prost::Message)]
struct SignResult {
    #[prost(bool, tag = "1")]
    result: bool,
    #[prost(bytes = "vec", tag = "2")]
    signature: Vec<u8>,
    #[prost(string, tag = "3")]
    error: String,
}

/// `verify_signature`.
pub(super) fn verify(argument: &[u8]) -> Result<Vec<u8>, Status> {
    let VerifyArguments {
        hash_function,
        public_key,
        signature,
        text,
        public_key_pem,
    } = prost::Message::decode(argument).map_err(|_| Status::BadArgument)?;
    let key = one_of(&public_key, &public_key_pem)?;
    let outcome = hash_of(&hash_function).and_then(|hash| {
        let key = match key {
            Encoded::Der(der) => PublicKey::parse(der),
            Encoded::Pem(pem) => blocks(pem)
                .find(|(label, _)| *label == "PUBLIC KEY")
                .and_then(|(_, der)| PublicKey::parse(&der)),
        };
        let key = key.ok_or("Failed to initialize digest verify.")?;
        match key.verify(hash, &text, &signature) {
            true => Ok(()),
            false => Err("Failed to verify digest. Error code: 0".to_owned()),
        }
    });
    let result = VerifyResult {
        result: outcome.is_ok(),
        error: outcome.err().unwrap_or_default(),
    };
    Ok(prost::Message::encode_to_vec(&result))
}

/// `sign`.
pub(super) fn sign(argument: &[u8]) -> Result<Vec<u8>, Status> {
    let SignArguments {
        hash_function,
        private_key,
        text,
        private_key_pem,
    } = prost::Message::decode(argument).map_err(|_| Status::BadArgument)?;
    let key = one_of(&private_key, &private_key_pem)?;
    let outcome = hash_of(&hash_function).and_then(|hash| {
        let key = match key {
            Encoded::Der(der) => PrivateKey::parse(der),
            Encoded::Pem(pem) => {
                blocks(pem).find_map(|(label, der)| PrivateKey::labelled(label, &der))
            }
        };
        match key {
            None => Err("Invalid key type: private key required for signing operation."),
            // Ed25519 hashes by itself.
            Some(PrivateKey::Other) => {
                Err("Invalid private key: key data is corrupted or malformed.")
            }
            Some(key) => key
                .sign(hash, &text)
                .ok_or("Failed to get signature length."),
        }
        .map_err(str::to_owned)
    });
    let mut result = SignResult::default();
    match outcome {
        Ok(signature) => {
            result.result = true;
            result.signature = signature;
        }
        Err(reason) => result.error = reason,
    }
    Ok(prost::Message::encode_to_vec(&result))
}

enum Encoded<'a> {
    Der(&'a [u8]),
    Pem(&'a str),
}

fn one_of<'a>(der: &'a [u8], pem: &'a str) -> Result<Encoded<'a>, Status> {
    match (der, pem) {
        _ if pem.len() > MAX_PEM => Err(Status::InternalFailure),
        ([], "") => Err(Status::BadArgument),
        (der, "") => Ok(Encoded::Der(der)),
        ([], pem) => Ok(Encoded::Pem(pem)),
        _ => Err(Status::BadArgument),
    }
}

#[derive(Clone, Copy)]
enum Hash {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

fn hash_of(name: &str) -> Result<Hash, String> {
    match name.to_ascii_lowercase().as_str() {
        "sha1" => Ok(Hash::Sha1),
        "sha224" => Ok(Hash::Sha224),
        "sha256" => Ok(Hash::Sha256),
        "sha384" => Ok(Hash::Sha384),
        "sha512" => Ok(Hash::Sha512),
        _ => Err(format!("{name} is not supported.")),
    }
}

impl Hash {
    fn digest(self, text: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha1 => Sha1::digest(text).to_vec(),
            Self::Sha224 => Sha224::digest(text).to_vec(),
            Self::Sha256 => Sha256::digest(text).to_vec(),
            Self::Sha384 => Sha384::digest(text).to_vec(),
            Self::Sha512 => Sha512::digest(text).to_vec(),
        }
    }
}

enum PublicKey {
    Rsa(rsa::PublicKey),
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
    P521(p521::ecdsa::VerifyingKey),
}

impl PublicKey {
    fn parse(der: &[u8]) -> Option<Self> {
        let der = first_element(der)?;
        if let Ok(key) = rsa::PublicKey::from_public_key_der(der) {
            return Some(Self::Rsa(key));
        }
        if let Ok(key) = p256::PublicKey::from_public_key_der(der) {
            return Some(Self::P256(key.into()));
        }
        if let Ok(key) = p384::PublicKey::from_public_key_der(der) {
            return Some(Self::P384(key.into()));
        }
        let key = p521::PublicKey::from_public_key_der(der).ok()?;
        Some(Self::P521(key.into()))
    }

    fn verify(&self, hash: Hash, text: &[u8], signature: &[u8]) -> bool {
        let digest = || hash.digest(text);
        match self {
            Self::Rsa(key) => match hash {
                Hash::Sha1 => key.pkcs1v15_verify::<Sha1>(text, signature),
                Hash::Sha224 => key.pkcs1v15_verify::<Sha224>(text, signature),
                Hash::Sha256 => key.pkcs1v15_verify::<Sha256>(text, signature),
                Hash::Sha384 => key.pkcs1v15_verify::<Sha384>(text, signature),
                Hash::Sha512 => key.pkcs1v15_verify::<Sha512>(text, signature),
            }
            .is_ok(),
            Self::P256(key) => p256::ecdsa::Signature::from_der(signature)
                .is_ok_and(|signature| key.verify_prehash(&digest(), &signature).is_ok()),
            Self::P384(key) => p384::ecdsa::Signature::from_der(signature)
                .is_ok_and(|signature| key.verify_prehash(&digest(), &signature).is_ok()),
            Self::P521(key) => p521::ecdsa::Signature::from_der(signature)
                .is_ok_and(|signature| key.verify_prehash(&digest(), &signature).is_ok()),
        }
    }
}

enum PrivateKey {
    Rsa(Box<rsa::PrivateKey>),
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
    P521(p521::ecdsa::SigningKey),
    /// A key that cannot sign what was hashed before.
    Other,
}

impl PrivateKey {
    fn parse(der: &[u8]) -> Option<Self> {
        let der = first_element(der)?;
        if let Ok(key) = rsa::PrivateKey::from_pkcs8_der(der) {
            return Some(Self::Rsa(Box::new(key)));
        }
        if let Ok(key) = p256::SecretKey::from_pkcs8_der(der) {
            return Some(Self::P256(key.into()));
        }
        if let Ok(key) = p384::SecretKey::from_pkcs8_der(der) {
            return Some(Self::P384(key.into()));
        }
        if let Ok(key) = p521::SecretKey::from_pkcs8_der(der) {
            return Some(Self::P521(key.into()));
        }
        let info = rsa::pkcs8::PrivateKeyInfoRef::try_from(der).ok()?;
        let ed25519 = rsa::pkcs8::ObjectIdentifier::new_unwrap("1.3.101.112");
        (info.algorithm.oid == ed25519).then_some(Self::Other)
    }

    /// A block of PEM: of `PrivateKeyInfo`, or of the forms before it.
    fn labelled(label: &str, der: &[u8]) -> Option<Self> {
        match label {
            "PRIVATE KEY" => Self::parse(der),
            "RSA PRIVATE KEY" => {
                let key = rsa::PrivateKey::from_pkcs1_der(first_element(der)?).ok()?;
                Some(Self::Rsa(Box::new(key)))
            }
            "EC PRIVATE KEY" => {
                let der = first_element(der)?;
                if let Ok(key) = p256::SecretKey::from_sec1_der(der) {
                    return Some(Self::P256(key.into()));
                }
                if let Ok(key) = p384::SecretKey::from_sec1_der(der) {
                    return Some(Self::P384(key.into()));
                }
                let key = p521::SecretKey::from_sec1_der(der).ok()?;
                Some(Self::P521(key.into()))
            }
            _ => None,
        }
    }

    fn sign(&self, hash: Hash, text: &[u8]) -> Option<Vec<u8>> {
        let digest = || hash.digest(text);
        match self {
            Self::Rsa(key) => match hash {
                Hash::Sha1 => key.pkcs1v15_sign::<Sha1>(text),
                Hash::Sha224 => key.pkcs1v15_sign::<Sha224>(text),
                Hash::Sha256 => key.pkcs1v15_sign::<Sha256>(text),
                Hash::Sha384 => key.pkcs1v15_sign::<Sha384>(text),
                Hash::Sha512 => key.pkcs1v15_sign::<Sha512>(text),
            }
            .ok(),
            Self::P256(key) => {
                let signature: p256::ecdsa::DerSignature = key.sign_prehash(&digest()).ok()?;
                Some(signature.as_bytes().to_vec())
            }
            Self::P384(key) => {
                let signature: p384::ecdsa::DerSignature = key.sign_prehash(&digest()).ok()?;
                Some(signature.as_bytes().to_vec())
            }
            Self::P521(key) => {
                let signature: p521::ecdsa::DerSignature = key.sign_prehash(&digest()).ok()?;
                Some(signature.as_bytes().to_vec())
            }
            Self::Other => None,
        }
    }
}

/// The first element of DER; what follows it is no matter.
fn first_element(der: &[u8]) -> Option<&[u8]> {
    let (header, len) = match *der.get(1)? {
        len if len < 0x80 => (2, usize::from(len)),
        0x81 => (3, usize::from(*der.get(2)?)),
        0x82 => (
            4,
            usize::from(u16::from_be_bytes([*der.get(2)?, *der.get(3)?])),
        ),
        _ => return None,
    };
    der.get(..header + len)
}

/// The blocks of PEM with their labels, up to one that does not end; what stands between them is skipped.
fn blocks(pem: &str) -> impl Iterator<Item = (&str, Vec<u8>)> {
    let mut rest = pem;
    std::iter::from_fn(move || {
        loop {
            let (_, after) = rest.split_once("-----BEGIN ")?;
            let (label, body) = after.split_once("-----")?;
            // No more dashes than those of its end: nothing is looked at twice.
            let (body, end) = body.split_once("-----")?;
            rest = end.strip_prefix("END ")?.strip_prefix(label)?;
            rest = rest.strip_prefix("-----")?;
            let body: String = body.split_ascii_whitespace().collect();
            if let Ok(der) = base64::engine::general_purpose::STANDARD.decode(body) {
                return Some((label, der));
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys and signatures of the differential suite; the signatures are OpenSSL's.
    fn keys() -> serde_json::Value {
        let text = include_str!("../../../tests/envoy/wasm/keys.json");
        serde_json::from_str(text).expect("JSON")
    }

    fn hex(text: &serde_json::Value) -> Vec<u8> {
        let text = text.as_str().expect("text").as_bytes();
        let digit = |byte: u8| char::from(byte).to_digit(16).expect("hex") as u8;
        text.chunks(2)
            .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
            .collect()
    }

    fn verified(arguments: &VerifyArguments) -> Result<VerifyResult, Status> {
        let result = verify(&prost::Message::encode_to_vec(arguments))?;
        Ok(prost::Message::decode(&*result).expect("a result"))
    }

    fn signed(arguments: &SignArguments) -> Result<SignResult, Status> {
        let result = sign(&prost::Message::encode_to_vec(arguments))?;
        Ok(prost::Message::decode(&*result).expect("a result"))
    }

    #[test]
    fn signatures_of_openssl_verify_and_others_do_not() {
        let keys = keys();
        for (name, signature) in keys["signatures"].as_object().expect("a table") {
            let (key, hash) = name.split_once('.').expect("a key and a hash");
            let known = key != "p224";
            let mut arguments = VerifyArguments {
                hash_function: hash.to_uppercase(),
                public_key: hex(&keys["public"][key]["der"]),
                signature: hex(signature),
                text: b"text".to_vec(),
                public_key_pem: String::new(),
            };
            let good = verified(&arguments).expect("arguments");
            assert_eq!(good.result, known, "{name}: {}", good.error);
            arguments.public_key.clear();
            arguments.public_key_pem =
                format!("junk\n{}", keys["public"][key]["pem"].as_str().unwrap());
            assert_eq!(
                verified(&arguments).expect("arguments").result,
                known,
                "{name}"
            );
            arguments.text = b"other".to_vec();
            let bad = verified(&arguments).expect("arguments");
            assert!(!bad.result && !bad.error.is_empty(), "{name}");
            if known {
                assert_eq!(bad.error, "Failed to verify digest. Error code: 0");
            }
        }
    }

    #[test]
    fn what_is_signed_verifies() {
        let keys = keys();
        for key in ["rsa", "rsa1024", "p256", "p384", "p521"] {
            for hash in ["sha1", "sha224", "sha256", "sha384", "sha512"] {
                for form in ["der", "pem", "pkcs1_pem", "sec1_pem"] {
                    let private = &keys["private"][key][form];
                    if private.is_null() {
                        continue;
                    }
                    let mut arguments = SignArguments {
                        hash_function: hash.to_owned(),
                        text: b"text".to_vec(),
                        ..SignArguments::default()
                    };
                    match form {
                        "der" => arguments.private_key = hex(private),
                        _ => arguments.private_key_pem = private.as_str().expect("text").to_owned(),
                    }
                    let signed = signed(&arguments).expect("arguments");
                    assert!(signed.result, "{key} {hash} {form}: {}", signed.error);
                    let verified = verified(&VerifyArguments {
                        hash_function: hash.to_owned(),
                        public_key: hex(&keys["public"][key]["der"]),
                        signature: signed.signature.clone(),
                        text: b"text".to_vec(),
                        public_key_pem: String::new(),
                    });
                    assert!(verified.expect("arguments").result, "{key} {hash} {form}");
                    // This kind of signature has one value.
                    if let Some(openssl) = keys["signatures"].get(format!("{key}.{hash}"))
                        && key.starts_with("rsa")
                    {
                        assert_eq!(signed.signature, hex(openssl), "{key} {hash} {form}");
                    }
                }
            }
        }
    }

    #[test]
    fn keys_that_make_no_sense_have_envoys_answers() {
        let keys = keys();
        let error = |hash: &str, key: &[u8]| {
            let arguments = VerifyArguments {
                hash_function: hash.to_owned(),
                public_key: key.to_vec(),
                ..VerifyArguments::default()
            };
            verified(&arguments).map(|result| result.error)
        };
        let message = "Failed to initialize digest verify.";
        let ed25519 = hex(&keys["public"]["ed25519"]["der"]);
        assert_eq!(error("sha256", b"x").as_deref(), Ok(message));
        assert_eq!(error("sha256", &ed25519).as_deref(), Ok(message));
        assert_eq!(error("md5", b"x").as_deref(), Ok("md5 is not supported."));
        assert_eq!(error("sha256", b""), Err(Status::BadArgument));
        assert_eq!(verify(b"\xff"), Err(Status::BadArgument));
        let mut arguments = SignArguments {
            hash_function: "sha256".to_owned(),
            private_key: hex(&keys["private"]["ed25519"]["der"]),
            ..SignArguments::default()
        };
        let reason = |arguments: &SignArguments| signed(arguments).map(|result| result.error);
        let message = "Invalid private key: key data is corrupted or malformed.";
        assert_eq!(reason(&arguments).as_deref(), Ok(message));
        arguments.private_key = b"x".to_vec();
        let message = "Invalid key type: private key required for signing operation.";
        assert_eq!(reason(&arguments).as_deref(), Ok(message));
        arguments.private_key_pem = "x".to_owned();
        assert_eq!(reason(&arguments), Err(Status::BadArgument));
    }

    #[test]
    fn pem_is_read_once_to_its_end_and_no_more_than_so_much_of_it() {
        let block = |label: &str, body: &str| {
            format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
        };
        let read = |pem: &str| -> Vec<String> {
            let blocks = blocks(pem);
            blocks
                .map(|(label, der)| format!("{label} {der:?}"))
                .collect()
        };
        let (one, other, bad) = (
            block("A", "AQ=="),
            block("B B", "A\ng =="),
            block("C", "a: b"),
        );
        assert_eq!(
            read(&format!("x\n{one}-- -\n{bad}{other}")),
            ["A [1]", "B B [2]"]
        );
        for pem in [
            "-----BEGIN A-----\nAQ==",
            "-----BEGIN A-----\nAQ==\n-----END B-----",
            "-----BEGIN A",
            "A-----",
        ] {
            assert_eq!(
                read(&format!("{one}{pem}\n{other}"))[..1],
                ["A [1]"],
                "{pem}"
            );
        }
        assert_eq!(read(&format!("-----BEGIN A-----\n{one}")), [""; 0]);
        let mut arguments = VerifyArguments {
            hash_function: "sha256".to_owned(),
            public_key_pem: " ".repeat(MAX_PEM),
            ..VerifyArguments::default()
        };
        assert!(verified(&arguments).is_ok_and(|result| !result.result));
        arguments.public_key_pem.push(' ');
        assert_eq!(verified(&arguments).err(), Some(Status::InternalFailure));
        // Each begins a block that the last line ends: read from each of them to there, it would take minutes.
        let lines = "-----BEGIN a-----\n".repeat(1 << 17) + "-----END a-----";
        assert_eq!(read(&lines), [""; 0]);
    }
}
