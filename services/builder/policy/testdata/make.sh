#!/bin/sh
# Makes the keys and signatures of these tests anew, with minisign 0.11 and openssl 3. cosign sign-blob --key makes what
# openssl makes here: the base64 of an ASN.1 or PKCS #1 signature of the SHA-256, or an Ed25519 signature of the file.
set -eu
secret=$(mktemp -d)
trap 'rm -r "$secret"' EXIT
printf 'an image\n' >image
for name in release other; do
	minisign -G -W -f -p "$name.pub" -s "$secret/$name" >/dev/null
	minisign -S -s "$secret/$name" -m image -x "$name.minisig" -t "image of $name" >/dev/null
done
minisign -S -l -s "$secret/release" -m image -x legacy.minisig -t 'image of old' >/dev/null
openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$secret/ecdsa"
openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$secret/rsa"
openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out "$secret/short"
openssl genpkey -algorithm ED25519 -out "$secret/ed25519"
for name in ecdsa rsa ed25519 short; do
	openssl pkey -in "$secret/$name" -pubout -out "$name.pem"
done
for name in ecdsa rsa; do
	openssl dgst -sha256 -sign "$secret/$name" image | openssl base64 -A >"$name.sig"
done
openssl pkeyutl -sign -rawin -inkey "$secret/ed25519" -in image | openssl base64 -A >ed25519.sig
