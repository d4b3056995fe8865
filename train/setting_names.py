"""The names of settings in messages."""


def setting(role: str, field: str) -> str:
    """The name of a field of a role's model, as `--set` takes it.

    A model of a teacher that has several has its own section, but for `model`, which is the list.
    """
    section, _, name = role.partition("/")
    own = f".settings.{name}" if name and field != "model" else ""
    return f"{section}{own}.{field}"
