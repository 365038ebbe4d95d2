"""`python -m ulskip_cli`, and the command `ulskip`."""

import gc
import os
import sys

from ulskip_cli.core import interruption

STARTUP_OBJECTS = 200_000  # more than a plan makes, and fewer than the import of torch


def delay_collections() -> None:
    """Let the garbage collector wait until there are STARTUP_OBJECTS, and then work as usual. It
    finds nothing during imports, but would take a tenth of the time of `ulskip plan`.
    """
    usual = gc.get_threshold()

    def restore(phase: str, info: dict[str, int]) -> None:
        gc.callbacks.remove(restore)
        gc.set_threshold(*usual)

    gc.callbacks.append(restore)
    gc.set_threshold(STARTUP_OBJECTS)


def main() -> None:
    """Run the command; handle signals from the start, because the imports of the command take some
    time.
    """
    interruption.install()
    delay_collections()
    # Pydantic would read the metadata of every installed package to find plug-ins.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        from ulskip_cli.cli.app import invoke

        code = invoke(sys.argv[1:])
        interruption.release()
        if interruption.received():
            interruption.end_process(code)
    except (KeyboardInterrupt, Exception) as error:  # during the imports, or a second signal
        if not isinstance(error, KeyboardInterrupt) and not interruption.received():
            raise
        interruption.release()
        print(f"ulskip: {interruption.MESSAGE}", file=sys.stderr)
        interruption.end_process(interruption.exit_code())
    gc.freeze()  # Python would search all objects at the end
    sys.exit(code)


if __name__ == "__main__":
    main()
