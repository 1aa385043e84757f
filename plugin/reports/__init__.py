"""One search shown: as text, as Mermaid, as a page that needs no network."""
