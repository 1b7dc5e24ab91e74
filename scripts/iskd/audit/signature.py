"""A study's signature: somebody vouches, with a key, for what each of its artifacts says.

A DSSE envelope (https://github.com/secure-systems-lab/dsse) around an in-toto Statement whose
subjects are the statements of all artifacts, by digest. Only ed25519: its signatures are the same
each time, and its keys have no parameters that somebody could choose badly.
"""

import json
from collections.abc import Iterator
from getpass import getpass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from iskd.audit.findings import Code, Finding
from iskd.audit.folder import SIGNATURE, StudyFolder
from iskd.errors import UserError
from iskd.provenance.artifact import MANIFEST, write_text
from iskd.provenance.statement import MAX_BYTES, STATEMENT_TYPE, canonical_json

PAYLOAD_TYPE = "application/vnd.in-toto+json"
PREDICATE_TYPE = "urn:iskd:signed-study:v1"
_HOW = "openssl genpkey -algorithm ed25519 -out key.pem"


def sign(folder: StudyFolder, signer: CryptoSigner) -> str:
    """Sign what all artifacts say, beside whoever has signed the same.

    Args:
        folder: the study; verify it first.
        signer: has the key (:func:`load_signer`).

    Returns:
        The key's id.
    """
    payload = _payload(folder).encode()
    envelope = _read(folder.path)
    if envelope is None or envelope.payload != payload:
        envelope = Envelope(payload, PAYLOAD_TYPE, {})
    keyid: str = envelope.sign(signer).keyid
    write_text(folder.path / SIGNATURE, canonical_json(envelope.to_dict()))
    return keyid


def check(folder: StudyFolder, key: Path) -> Iterator[Finding]:
    """Check that the holder of a key has signed what lies here.

    Args:
        folder: the study.
        key: a file with the ed25519 public key (PEM).

    Raises:
        UserError: the file holds no such key.
    """
    public = _public_key(key)
    if not (folder.path / SIGNATURE).is_file():
        yield Finding(SIGNATURE, Code.UNSIGNED, "the study has no signature, and shall have one")
        return
    envelope = _read(folder.path)
    if envelope is None or envelope.payload_type != PAYLOAD_TYPE:
        yield Finding(SIGNATURE, Code.SIGNATURE, "it is no signature of a study")
        return
    try:
        envelope.verify([public], 1)
    except VerificationError:
        message = (
            f"not signed with this key, {public.keyid}, but with {', '.join(envelope.signatures)}"
        )
        if public.keyid in envelope.signatures:
            message = "the key's signature is of something else"
        yield Finding(SIGNATURE, Code.SIGNATURE, message)
        return
    signed, here = _digests(envelope.payload), _digests(_payload(folder).encode())
    for name in sorted({*signed, *here}):
        if signed.get(name) != here.get(name):
            message = (
                "was not there when the study was signed"
                if name not in signed
                else "was signed, and is not there"
                if name not in here
                else "is another than was signed"
            )
            yield Finding(name.rpartition("/")[0] or name, Code.SIGNATURE, f"{name} {message}")


def signers(folder: StudyFolder) -> list[str]:
    """Give the ids of the keys that a study says it was signed with; nothing is checked."""
    envelope = _read(folder.path)
    return [] if envelope is None else sorted(envelope.signatures)


def _payload(folder: StudyFolder) -> str:
    subjects = [
        {"name": f"{place}/{MANIFEST}", "digest": {"sha256": found.digest}}
        for place, found in sorted(folder.artifacts.items())
    ]
    return canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": subjects,
            "predicateType": PREDICATE_TYPE,
            "predicate": {"study": folder.name},
        }
    )


def _digests(payload: bytes) -> dict[str, Any]:
    """Read a payload that was signed: its author could have written anything else too."""
    try:
        statement = json.loads(payload)
        if statement["predicateType"] != PREDICATE_TYPE:
            return {}
        study = {"the study's name": statement["predicate"]["study"]}
        return study | {about["name"]: about["digest"]["sha256"] for about in statement["subject"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


def _read(study: Path) -> Envelope | None:
    path = study / SIGNATURE
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        return Envelope.from_dict(json.loads(path.read_bytes()))
    # What lies there is anybody's, and the library says in many ways that it cannot read it.
    except Exception:
        return None


def load_signer(path: Path) -> CryptoSigner:
    """Read an ed25519 private key (PEM, PKCS 8); its password is asked for if it has one.

    Raises:
        UserError: the file holds no such key.
    """
    data = _bytes(path, "private")
    password = None
    if b"ENCRYPTED" in data:
        password = getpass(f"password of {path}: ").encode()
    try:
        key = load_pem_private_key(data, password)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: it holds no private key that can be read; {_HOW}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path}: it holds another kind of key than ed25519; {_HOW}")
    return CryptoSigner(key)


def _public_key(path: Path) -> SSlibKey:
    how = "openssl pkey -in key.pem -pubout -out public.pem"
    try:
        key = load_pem_public_key(_bytes(path, "public"))
    except ValueError as error:
        raise UserError(f"{path}: it holds no public key that can be read; {how}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{path}: it holds another kind of key than ed25519; {how}")
    return SSlibKey.from_crypto(key)


def _bytes(path: Path, kind: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the {kind} key cannot be read: {error.strerror}") from error
