"""Handshakes of programs that use go-plugin, to drive their plugins or to write one for them.

The version is the newest application version known of each; a plugin may serve, and a host offer, more of them with
``versioned_plugins=``. A cookie is no secret: each is a constant in the program's public source.

    with fastplug.start("terraform-provider-time", handshake=fastplug.presets.TERRAFORM, auto_mtls=True) as client: ...

Some of them always use AutoMTLS (Terraform, Vault, Boundary): start their plugins with ``auto_mtls=True``. Mattermost's plugins speak
net/rpc.
"""

from __future__ import annotations

from fastplug.config import HandshakeConfig

__all__ = [
    "AVALANCHEGO",
    "BOUNDARY",
    "GO_PLUGIN_EXAMPLES",
    "GRAFANA",
    "HTTPRUNNER",
    "MACH_COMPOSER",
    "MATTERMOST",
    "NOMAD",
    "STEAMPIPE",
    "TERRAFORM",
    "TERRAFORM_6",
    "TERRAGRUNT",
    "TFLINT",
    "VAULT_BACKEND",
    "VAULT_DATABASE",
    "VELERO",
]

# Terraform and OpenTofu share it. Protocol 5 is what most providers serve, 6 what newer ones may; terraform offers both.
_TERRAFORM = ("TF_PLUGIN_MAGIC_COOKIE", "d602bf8f470bc67ca7faa0386276bbdd4330efaf76d1a219cb4d6991ca9872b2")
TERRAFORM = HandshakeConfig(5, *_TERRAFORM)
TERRAFORM_6 = HandshakeConfig(6, *_TERRAFORM)
VAULT_BACKEND = HandshakeConfig(5, "VAULT_BACKEND_PLUGIN", "6669da05-b1c8-4f49-97d9-c8e5bed98e20")
VAULT_DATABASE = HandshakeConfig(6, "VAULT_DATABASE_PLUGIN", "926a0820-aea2-be28-51d6-83cdf00e8edb")
NOMAD = HandshakeConfig(1, "NOMAD_PLUGIN_MAGIC_COOKIE", "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255")
BOUNDARY = HandshakeConfig(1, "HASHICORP_BOUNDARY_PLUGIN", "boundary-plugin")
TFLINT = HandshakeConfig(11, "TFLINT_RULESET_PLUGIN", "5adSn1bX8nrDfgBqiAqqEkC6OE1h3iD8SqbMc5UUONx8x3xCF0KlPDsBRNDjoYDP")
GRAFANA = HandshakeConfig(2, "grafana_plugin_type", "datasource")
STEAMPIPE = HandshakeConfig(0, "MANTIX_PLUGIN_MAGIC_COOKIE", "really-complex-permanent-string-value")
MATTERMOST = HandshakeConfig(1, "MATTERMOST_PLUGIN", "Securely message teams, anywhere.")
VELERO = HandshakeConfig(2, "VELERO_PLUGIN", "hello")
TERRAGRUNT = HandshakeConfig(1, "engine", "terragrunt")
MACH_COMPOSER = HandshakeConfig(1, "MACH_COMPOSER", "plugin")
AVALANCHEGO = HandshakeConfig(4, "VM_PLUGIN", "dynamic")
HTTPRUNNER = HandshakeConfig(1, "HttpRunnerPlus", "debugtalk")
GO_PLUGIN_EXAMPLES = HandshakeConfig(1, "BASIC_PLUGIN", "hello")
