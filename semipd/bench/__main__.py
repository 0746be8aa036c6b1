"""`python -m semipd.bench`."""

from semipd.bench.commands.cli import bench_app

if __name__ == "__main__":
    bench_app(prog_name="semipd bench")
