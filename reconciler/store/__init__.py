"""The durable state, kept in memory and written to SQLite behind it; locks."""
