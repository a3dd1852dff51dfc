"""Operations that encoders and objectives share."""
