"""The options by which a generation is watched; their names are those of `open_observers`."""

from typing import Any

from jsonargparse import ArgumentParser, Namespace

from engine.monitor.opening import LOOPBACK


def add_monitor_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--metrics-port", type=int, metavar="N", help="serves metrics for Prometheus; 0: any")
    parser.add_argument("--metrics-host", default=LOOPBACK, metavar="HOST", help="where it listens")
    parser.add_argument("--tensorboard", metavar="DIR", help="writes curves for TensorBoard")
    parser.add_argument("--wandb", metavar="PROJECT", help="writes curves to a project of W&B")


def monitor_options(options: Namespace) -> dict[str, Any]:
    """What `open_observers` is told of the command line."""
    return {name: options[name] for name in ("metrics_port", "metrics_host", "tensorboard", "wandb")}
