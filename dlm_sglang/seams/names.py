"""Names under which we register with SGLang; light, so that anyone may import it."""

ALGORITHM = "DLM"
ATTENTION_BACKEND = "dlm"
ARCHITECTURE = "NemotronLabsDiffusionModel"
MODEL_TYPE = "nemotron_labs_diffusion"
