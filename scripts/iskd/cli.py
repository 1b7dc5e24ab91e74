"""The command ``iskd``: what is asked of a folder of results, and done with its models."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from iskd.errors import UserError
from iskd.serving.commands import add_commands

CANNOT = 2
"""Exit code where a question could not be answered."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; give its exit code: 0 all is well, 1 findings, 2 could not tell."""
    args = make_parser().parse_args(arguments)
    try:
        code: int = args.run(args)
    except UserError as error:
        print(error, file=sys.stderr)
        return CANNOT
    except BrokenPipeError:
        return CANNOT
    return code


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all subcommands."""
    parser = argparse.ArgumentParser(prog="iskd", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    verify = commands.add_parser(
        "verify",
        help="are these the study's bytes, made from one another, by this code and config?",
        description="Verify a study. Exit code 0: all is well; 1: findings; 2: could not verify.",
    )
    verify.add_argument("study", type=Path, help="its folder, results/<study>")
    verify.add_argument(
        "--at",
        choices=("recorded", "checkout"),
        default="recorded",
        help="recorded: its history is consistent; checkout: this code would still make it so",
    )
    verify.add_argument(
        "--configfile", type=Path, help="its config; left out, the one it was made with"
    )
    verify.add_argument("--root", help="the root digest that it shall have")
    verify.add_argument(
        "--signed-by",
        type=Path,
        metavar="PUBLIC.pem",
        help="whose signature it shall have: a file with an ed25519 public key",
    )
    verify.add_argument(
        "--trust",
        type=Path,
        metavar="FILE",
        help="take over digests that an earlier call wrote there, of files whose size, time of "
        "change and inode are the same",
    )
    verify.add_argument(
        "--fast", action="store_true", help="leave out making figures, tables and texts again"
    )
    verify.add_argument("--json", action="store_true", help="print the verdict for machines")
    verify.set_defaults(run=_verify)
    sign = commands.add_parser(
        "sign",
        help="vouch for a study with a key",
        description="Verify a study, and sign what all its artifacts say if nothing was found. "
        "Exit code 1: findings, nothing signed; 2: could not verify.",
    )
    sign.add_argument("study", type=Path, help="its folder, results/<study>")
    sign.add_argument(
        "--key", type=Path, required=True, metavar="KEY.pem", help="your ed25519 private key"
    )
    sign.set_defaults(run=_sign)
    export = commands.add_parser(
        "export",
        help="describe a study for others: a Run Crate, a filled checklist, its code",
        description="Write ro-crate-metadata.json (a Provenance Run Crate of the folder as it is), "
        "reproducibility.md and code/ into a study, if nothing is found in it. Exit code 1: "
        "findings, nothing written; 2: could not verify, or the code is not to be had.",
    )
    export.add_argument("study", type=Path, help="its folder, results/<study>")
    export.add_argument("--licence", required=True, help="of the results: a URL, or in words")
    export.set_defaults(run=_export)
    trace = commands.add_parser(
        "trace",
        help="where does this figure, number or checkpoint come from?",
        description="Show what a file was made from, down to the data. A figure from anywhere is "
        "known by the digest in its metadata. Exit code 2: no statement is about it.",
    )
    trace.add_argument(
        "file", help="a file or folder of a study, a figure, or a number's LaTeX macro (\\iskd...)"
    )
    trace.add_argument("--study", type=Path, help="results/<study>, if the file lies elsewhere")
    trace.add_argument("--html", type=Path, metavar="FILE", help="write a page instead")
    trace.set_defaults(run=_trace)
    again = commands.add_parser(
        "reproduce",
        help="make an artifact again from its recorded inputs: is it the same?",
        description="Make artifacts again in a clean folder, by the code that made them, without a "
        "network. Exit code 0: the same, or within the tolerance; 1: different, or it failed; 2: "
        "refused.",
    )
    again.add_argument("file", type=Path, help="an artifact's folder or file, or results/<study>")
    again.add_argument(
        "--tolerance", type=float, default=0.0, help="largest relative distance that passes"
    )
    again.add_argument("--configfile", type=Path, help="the study's config, if none is recorded")
    again.add_argument(
        "--twin",
        dest="variant",
        choices=("resume", "scalar"),
        help="resume: kill it in its middle and call it again; scalar: without vector "
        "instructions, which tells how far other processors may be off",
    )
    again.add_argument("--sample", type=int, metavar="N", help="N artifacts of a study, drawn")
    again.add_argument("--seed", type=int, default=0, help="of the draw")
    again.add_argument("--json", action="store_true", help="print the verdicts for machines")
    again.set_defaults(run=_reproduce)
    memory = commands.add_parser(
        "memory",
        help="does a training of this model fit on my GPU, and with which settings?",
        description="Work out what a fine-tuning of a model holds in memory, and which micro_batch "
        "fits on a card. Nothing is allocated or computed.",
    )
    memory.add_argument("model", type=Path, help="a Hugging Face folder: its config.json is enough")
    memory.add_argument("--length", type=int, required=True, help="tokens per sequence")
    memory.add_argument(
        "--cards", type=float, nargs="+", default=[24, 40, 80], metavar="GB", help="sizes of cards"
    )
    memory.add_argument("--kl", action="store_true", help="with the teacher in memory, in bfloat16")
    memory.add_argument(
        "--teacher-cache",
        choices=("none", "exact", "sampled"),
        default="none",
        help="with --kl: what of the teacher is recorded, so that it need not be there",
    )
    memory.set_defaults(run=_memory)
    diff = commands.add_parser(
        "diff",
        help="what differs between two runs of a study?",
        description="Compare two studies: config, code, environment, data, models, numbers. Exit "
        "code 0: no difference; 1: some.",
    )
    diff.add_argument("one", type=Path, help="results/<study>")
    diff.add_argument("other", type=Path, help="another one")
    diff.add_argument("--json", action="store_true", help="print all of it for machines")
    diff.set_defaults(run=_diff)
    add_commands(commands)
    return parser


def _verify(args: argparse.Namespace) -> int:
    from iskd.audit.verify import verify

    verdict = verify(
        args.study,
        at=args.at,
        config=args.configfile,
        root=args.root,
        signed_by=args.signed_by,
        memory=args.trust,
        derive=not args.fast,
    )
    sys.stdout.write(verdict.as_json() if args.json else verdict.as_text())
    return verdict.exit_code


def _sign(args: argparse.Namespace) -> int:
    from iskd.audit.folder import SIGNATURE, StudyFolder
    from iskd.audit.signature import load_signer, sign
    from iskd.audit.verify import verify

    signer = load_signer(args.key)
    verdict = verify(args.study)
    if verdict.findings:
        sys.stdout.write(f"{verdict.as_text()}nothing was signed\n")
        return verdict.exit_code
    folder = StudyFolder(args.study)
    keyid = sign(folder, signer)
    print(f"{folder.name}: {len(folder.artifacts)} statements signed with {keyid}: {SIGNATURE}")
    return 0


def _export(args: argparse.Namespace) -> int:
    from iskd.audit.export import export, is_exported
    from iskd.audit.findings import Code
    from iskd.audit.folder import CHECKLIST, CODE, CRATE
    from iskd.audit.verify import verify

    verdict = verify(args.study)
    # What an earlier export wrote is written anew; one that was killed has left no crate.
    verdict.findings = [
        found
        for found in verdict.findings
        if found.code != Code.EXPORT
        and not (found.code == Code.ORPHAN and is_exported(found.place))
    ]
    if verdict.findings:
        sys.stdout.write(f"{verdict.as_text()}nothing was exported\n")
        return verdict.exit_code
    export(args.study, args.licence)
    print(f"{args.study}: {CRATE}, {CHECKLIST} and {CODE}/ are written")
    return 0


def _trace(args: argparse.Namespace) -> int:
    from iskd.audit.trace import as_page, as_text, study_of, trace, trace_number

    # A shell takes the backslash off a macro that stands in no quotes.
    is_macro = args.file.startswith("iskd") and args.file.isalpha()
    is_number = args.file.startswith("\\") or (is_macro and not Path(args.file).exists())
    study = args.study or (None if is_number else study_of(Path(args.file)))
    if study is None:
        raise UserError(f"{args.file}: it lies in no study; name one with --study results/<study>")
    origin = trace_number(study, args.file) if is_number else trace(study, Path(args.file))
    if args.html is None:
        sys.stdout.write(as_text(origin))
    else:
        args.html.write_text(as_page(origin), encoding="utf-8")
    return 0


def _memory(args: argparse.Namespace) -> int:
    from iskd.training.memory import memory_table

    print(
        memory_table(
            args.model, args.length, args.cards, kl=args.kl, teacher_cache=args.teacher_cache
        )
    )
    return 0


def _reproduce(args: argparse.Namespace) -> int:
    from iskd.audit.reproduce import Variant, choose, reproduce
    from iskd.audit.trace import study_of
    from iskd.audit.verdict import Reproduced
    from iskd.provenance.statement import canonical_json

    study = study_of(args.file)
    if study is None:
        raise UserError(f"{args.file}: it lies in no study, results/<study>")
    if args.sample is not None:
        places = choose(study, args.sample, args.seed)
    else:
        name = args.file if args.file.is_dir() else args.file.parent
        places = [name.resolve().relative_to(study).as_posix()]
    code = 0
    for place in places:
        variant = None if args.variant is None else Variant(args.variant)
        done = reproduce(
            study, place, tolerance=args.tolerance, config=args.configfile, variant=variant
        )
        sys.stdout.write(canonical_json(done.as_statement()) if args.json else done.as_text())
        sys.stdout.flush()
        if done.verdict in (Reproduced.DIFFERENT, Reproduced.FAILED):
            code = 1
        elif done.verdict == Reproduced.REFUSED and code == 0:
            code = CANNOT
    return code


def _diff(args: argparse.Namespace) -> int:
    from iskd.audit.diff import as_json, compare_studies
    from iskd.provenance.statement import canonical_json

    found = compare_studies(args.one, args.other)
    sys.stdout.write(canonical_json(as_json(found)) if args.json else found.as_text())
    return found.exit_code


if __name__ == "__main__":
    sys.exit(main())
