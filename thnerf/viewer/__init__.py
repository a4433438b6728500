"""`thnerf view`: a subject in the browser, its Track played and edited. Only `page`, `widgets` and `server` need viser."""
