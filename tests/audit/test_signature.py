"""Signed studies: whoever holds the key vouches for each artifact, and for nothing else."""

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from iskd.audit.findings import Code
from iskd.audit.folder import SIGNATURE, StudyFolder
from iskd.audit.signature import load_signer, sign
from iskd.cli import main
from iskd.errors import UserError
from iskd.provenance.statement import canonical_json

from .tampering import RESULTS, Results, flip

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("planned_once")]

STEP = "substitute_block/toy/iskd/seed_3/step_02"
PASSWORD = "not a good one"  # noqa: S105


def write_keys(
    folder: Path, name: str, password: str | None = None, *, elliptic: bool = False
) -> tuple[Path, Path]:
    """Write a private and a public key and give their files."""
    key = ec.generate_private_key(ec.SECP256R1()) if elliptic else None
    private = key or ed25519.Ed25519PrivateKey.generate()
    how: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        how = serialization.BestAvailableEncryption(password.encode())
    secret, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    pem = serialization.Encoding.PEM
    secret.write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, how))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(private.public_key().public_bytes(pem, form))
    return secret, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path, "mine")


def sign_with(secret: Path, results: Results) -> None:
    """Sign as the command does, which verifies before: the one test that calls it says so."""
    sign(StudyFolder(results.folder), load_signer(secret))


@pytest.fixture
def signed(results: Results, keys: tuple[Path, Path]) -> Results:
    sign_with(keys[0], results)
    return results


def test_what_was_signed_verifies_with_the_key(
    results: Results, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sign", str(results.folder), "--key", str(keys[0])]) == 0
    assert capsys.readouterr().out.endswith(f": {SIGNATURE}\n")
    command = ["verify", str(results.folder), "--fast", "--signed-by", str(keys[1])]
    assert main(command) == 0
    assert main(command[:3]) == 0
    assert "not checked: the signature of" in capsys.readouterr().out


def test_28_unsigned_where_a_signature_is_required(
    results: Results, keys: tuple[Path, Path]
) -> None:
    assert results.codes(signed_by=keys[1]) == {(SIGNATURE, Code.UNSIGNED)}


def test_28_another_key(signed: Results, tmp_path: Path) -> None:
    _, public = write_keys(tmp_path, "another")
    assert signed.codes(signed_by=public) == {(SIGNATURE, Code.SIGNATURE)}


def test_28_anothers_signature_under_this_keys_name(
    signed: Results, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    mine = json.loads((signed / SIGNATURE).read_text())
    secret, _ = write_keys(tmp_path, "another")
    (signed / SIGNATURE).unlink()
    sign_with(secret, signed)
    forged = json.loads((signed / SIGNATURE).read_text())
    forged["signatures"][0]["keyid"] = mine["signatures"][0]["keyid"]
    (signed / SIGNATURE).write_text(canonical_json(forged))
    assert signed.codes(signed_by=keys[1]) == {(SIGNATURE, Code.SIGNATURE)}


def test_a_statement_written_anew_is_not_what_was_signed(
    signed: Results, keys: tuple[Path, Path]
) -> None:
    """The last artifact, so that no other one tells: only the signature knows."""
    signed.rewrite("paper_bundle", summary={"files": 1})
    assert signed.codes() == set()
    assert signed.codes(signed_by=keys[1]) == {("paper_bundle", Code.SIGNATURE)}


def test_a_signature_says_nothing_about_another_study(
    signed: Results, keys: tuple[Path, Path]
) -> None:
    payload = json.loads(base64.b64decode(json.loads((signed / SIGNATURE).read_text())["payload"]))
    assert payload["predicate"] == {"study": "tiny"}
    flip(signed / f"{STEP}/model.safetensors")
    signed.rewrite(STEP)
    assert (STEP, Code.SIGNATURE) in signed.codes(signed_by=keys[1])
    shutil.rmtree(signed / STEP)
    assert any(code == Code.SIGNATURE for _, code in signed.codes(signed_by=keys[1]))


def cut(text: str) -> str:
    return text[: len(text) // 2]


def edited(text: str) -> str:
    envelope = json.loads(text)
    payload = base64.b64decode(envelope["payload"]).replace(b'"tiny"', b'"evil"')
    return canonical_json(envelope | {"payload": base64.b64encode(payload).decode()})


def of_another_type(text: str) -> str:
    return canonical_json(json.loads(text) | {"payloadType": "text/plain"})


def without_signatures(text: str) -> str:
    return canonical_json(json.loads(text) | {"signatures": []})


@pytest.mark.parametrize(
    "harm", [cut, edited, of_another_type, without_signatures, lambda _: "[]", lambda _: "\xff{"]
)
def test_a_damaged_signature(
    harm: Callable[[str], str], signed: Results, keys: tuple[Path, Path]
) -> None:
    text = (signed / SIGNATURE).read_text(encoding="utf-8")
    (signed / SIGNATURE).write_text(harm(text), encoding="latin-1")
    assert signed.codes(signed_by=keys[1]) == {(SIGNATURE, Code.SIGNATURE)}
    signed.verdict()


def test_two_people_sign_and_a_second_time_changes_nothing(
    signed: Results, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    before = (signed / SIGNATURE).read_bytes()
    sign_with(keys[0], signed)
    assert (signed / SIGNATURE).read_bytes() == before
    secret, public = write_keys(tmp_path, "another")
    sign_with(secret, signed)
    assert signed.codes(signed_by=keys[1]) == signed.codes(signed_by=public) == set()
    # What has changed since is signed by its last signer alone.
    signed.rewrite("paper_bundle", summary={"files": 1})
    sign_with(secret, signed)
    assert signed.codes(signed_by=public) == set()
    assert signed.codes(signed_by=keys[1]) == {(SIGNATURE, Code.SIGNATURE)}


def test_nothing_is_signed_in_which_something_is_found(
    results: Results, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    flip(results / f"{STEP}/model.safetensors")
    assert main(["sign", str(results.folder), "--key", str(keys[0])]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "nothing was signed"
    assert not (results / SIGNATURE).exists()


def test_a_key_with_a_password(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, public = write_keys(tmp_path, "locked", PASSWORD)
    monkeypatch.setattr("iskd.audit.signature.getpass", lambda prompt: "wrong")
    with pytest.raises(UserError, match="no private key that can be read"):
        load_signer(secret)
    monkeypatch.setattr("iskd.audit.signature.getpass", lambda prompt: PASSWORD)
    sign_with(secret, results)
    assert results.codes(signed_by=public) == set()


def test_a_file_that_is_no_key_is_one_line(
    tmp_path: Path, results: Results, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    elliptic, public = write_keys(tmp_path, "elliptic", elliptic=True)
    for wrong, message in {
        tmp_path / "none.pem": "the private key cannot be read",
        keys[1]: "it holds no private key that can be read",
        elliptic: "it holds another kind of key than ed25519",
    }.items():
        assert main(["sign", RESULTS, "--key", str(wrong)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{wrong}: {message}")
    for wrong, message in {
        keys[0]: "it holds no public key",
        public: "it holds another kind of key",
    }.items():
        with pytest.raises(UserError, match=message):
            results.verdict(signed_by=wrong)
