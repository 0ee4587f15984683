"""The ledger on a SQL database: one store a file, statements in SQLAlchemy Core, no ORM."""
