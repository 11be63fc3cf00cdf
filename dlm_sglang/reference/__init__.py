"""The oracle: the model and the three modes in plain torch, slow and obvious, without SGLang."""

from dlm_sglang.reference.decoder import OracleParams, OracleResult, decode
from dlm_sglang.reference.model import NldConfig, NldModel, load_model

__all__ = ["NldConfig", "NldModel", "OracleParams", "OracleResult", "decode", "load_model"]
