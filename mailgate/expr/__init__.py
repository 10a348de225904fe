"""The rules operators write: lexer, parser, types, closures, three-valued evaluation."""
