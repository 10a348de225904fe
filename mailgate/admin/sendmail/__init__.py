"""The program `sendmail`: mail from programs of this host."""
