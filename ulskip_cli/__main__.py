"""`python -m ulskip_cli`, and the command `ulskip`."""

import os
import sys

from ulskip_cli.core import interruption


def main() -> None:
    """Run the command; handle signals from the start, because the imports of the command take some
    time.
    """
    interruption.install()
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
    sys.exit(code)


if __name__ == "__main__":
    main()
