"""HTTP: request parameters in, decode statistics out. Imports no SGLang; `seams/http.py` installs it."""
