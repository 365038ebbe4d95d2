"""The `ulskip` command: Typer commands, terminal output and progress bars, and nothing else. Start
with `app.py`. Nothing here imports torch at module level, so that help, plans and usage errors
answer at once.
"""
