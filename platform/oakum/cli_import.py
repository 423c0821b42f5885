"""The command `oakum import`: weights that authors published become weights of oakum's networks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from oakum.published_weights import ROLES, import_bido, import_torchvision
from oakum.session_home import Home
from oakum.weights import weights_folder


def add_import(commands: Any) -> None:
    """Add the command to the subparsers of `oakum`."""
    parser = commands.add_parser("import", help="take over weights that the authors of a paper published")
    authors = parser.add_subparsers(required=True, metavar="AUTHORS")
    text = "take over a file of the authors of BiDO; nothing in it is executed"
    bido = authors.add_parser(
        "bido",
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog="Roles: " + "; ".join(f"{name}: {role.summary}" for name, role in ROLES.items()) + ".",
    )
    bido.add_argument("file", type=Path, help="state dict as published (.tar, .pth, .pkl of torch.save)")
    bido.add_argument("--as", dest="role", required=True, choices=list(ROLES), metavar="ROLE", help="what it is")
    bido.add_argument("--name", required=True, help="name that it gets in the folder of weights")
    bido.set_defaults(command="import_bido")
    text = "take torchvision's ImageNet weights of vgg16_bn as a start for vgg16_bn1d"
    torchvision = authors.add_parser("torchvision", help=text, description=text[0].upper() + text[1:] + ".")
    torchvision.add_argument("--file", type=Path, help="state dict that you have (default: torchvision downloads it)")
    torchvision.add_argument("--name", required=True, help="name that it gets; set it as model.initial_weights")
    torchvision.set_defaults(command="import_torchvision")


def run_import(options: argparse.Namespace) -> int:
    """Write weights of the authors of BiDO and say what they are.

    Raises:
        ConfigError: the file is not exactly what the role says, or a bad name.
    """
    folder = weights_folder(Home.of_environment().data)
    written = import_bido(options.file, options.role, options.name, folder)
    facts = written.facts
    channels, height, width = facts["input_shape"]
    classes = "" if facts["num_classes"] is None else f", {facts['num_classes']} classes"
    sys.stdout.write(
        f"{written.name}: {facts['architecture']}, {channels}x{height}x{width}{classes}, {facts['bytes']:,} bytes, "
        f"SHA-256 {written.sha256}\n{facts['license_note']}\n"
    )
    return 0


def run_torchvision_import(options: argparse.Namespace) -> int:
    """Write torchvision's weights and say what they are.

    Raises:
        ConfigError: see `import_torchvision`.
    """
    written = import_torchvision(options.file, options.name, weights_folder(Home.of_environment().data))
    sys.stdout.write(f"{written.name}: {written.facts['architecture']}, SHA-256 {written.sha256}\n")
    return 0
