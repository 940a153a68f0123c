"""The HTTP server: a bundle behind the protocols of other libraries ([docs/http.md]). FastAPI is imported only here."""
