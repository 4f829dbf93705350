"""The console script `sumix`: the commands of bin/ under one name."""

import sys
from importlib import import_module

COMMANDS = {
    "prepare": "make a folder that trains from recordings and their texts",
    "train": "train a model as a recipe says",
    "decode": "recognise whole utterances",
    "stream-decode": "recognise speech chunk by chunk",
    "spot": "spot keywords, or classify recordings",
    "train-lm": "make a language model from text",
    "tune": "find the weights of a search on a development set",
    "export": "export a model for sherpa-onnx, ONNX runtimes or PyTorch",
    "serve": "serve a model to browsers and programs",
    "bench": "measure speed and memory",
}


def main() -> None:
    """Run the command named by the first argument; its --help tells its options.

    Exits with 2 and the list of commands where there is none of that name.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in COMMANDS:
        sys.argv[:2] = [f"sumix {name}"]
        import_module(f"sumix_stream.cli.{name.replace('-', '_')}").run()
        return
    lines = [f"  {command:<14} {about}" for command, about in COMMANDS.items()]
    usage = "\n".join(["usage: sumix COMMAND [OPTION ...]", "", *lines, "", "sumix COMMAND --help lists its options."])
    if name in ("-h", "--help"):
        print(usage)
        return
    sys.exit(f"{usage}\n\nerror: {f'unknown command {name!r}' if name else 'no command given'}")


if __name__ == "__main__":
    main()
