"""What is trained and what ranks: models, floors, ranking, bundles."""
