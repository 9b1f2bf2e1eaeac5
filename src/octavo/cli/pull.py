"""``octavo pull``: fetch a model before it is needed, and say where it is."""

from __future__ import annotations

from octavo.cli.flags import Parser


def run(argv: list[str]) -> int:
    """Download what is not there yet and print the path, alone on standard output.

    Args:
        argv: the words after ``octavo pull``.

    Raises:
        ModelLoadError: the model cannot be found or fetched.
    """
    parser = Parser("octavo pull", "Download a model and print where it is; the embedded default when MODEL is omitted.", "[MODEL]")
    parser.add_argument("model", metavar="MODEL", nargs="?", help="Hugging Face repository id")
    parser.add_argument("--revision", metavar="TEXT", help="branch, tag or commit of the repository")
    args = parser.parse_args(argv)

    from octavo.models.hub import resolve

    print(resolve(args.model, args.revision, refresh=True).path)
    return 0
