"""The section [access]: who may ask this server for what. What it means: docs/access.md."""

from __future__ import annotations

from dataclasses import dataclass

from ringserve.config.setting import setting


@dataclass(frozen=True)
class Access:
    """Who may ask."""

    keys_file: str = setting("", "TOML file with the keys of those who may ask; empty: everybody may ask everything")
    keys_check_ms: int = setting(2000, "how often that file is read again; changes hold from then on", low=10)
    anonymous: str = setting("", "what may be asked without a key: scopes such as 'status, predict:public-*'")
    open_health: bool = setting(True, "health and readiness answer without a key: probes have none")
