"""The command line, `python -m kernel_lib COMMAND`."""

from importlib.util import find_spec

from kernel_lib.command_line import main

if find_spec("kernel_lib.commands"):  # a kernel has the stages' commands alone
    import kernel_lib.commands  # noqa: F401

if __name__ == "__main__":
    main(prog_name="python -m kernel_lib")
