"""Changes a library of models; `abrupt` ends it at one of its steps."""

from pathlib import Path

from appliance.inference.library import Library


def play(root: str, change: str) -> None:
    library = Library(Path(root) / "models")
    if change == "add":
        library.add(Path(root) / "new")
    elif change == "use":
        library.use(library.find("toy@2.0.0"))
    else:
        library.remove(library.find("toy@1.0.0"))
