"""Ids of corpora that become names of files."""


def require_plain_name(name: str, where: str) -> str:
    """The name, if it can only mean a file in the folder it is put into. Raises ValueError, beginning with `where`.

    A table that was made by others may say `../../recipes` where a session's id should stand, and folders of that name
    are emptied and written to.
    """
    plain = bool(name) and len(name.encode()) <= 200 and name.isprintable()
    if not plain or name.startswith(".") or any(sign in name for sign in "/\\:"):
        raise ValueError(
            f"{where}: {name[:80]!r} is no plain name (letters, digits, - and _; no / \\ : and no dot first), but a "
            "file is to be named after it; correct the table, or get it from its publisher again"
        )
    return name
