package messages

import (
	"net/url"
	"regexp"
	"strings"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

// SourceText gives a source as a person writes it, without credentials: git+https://git.example/www#main,
// docker:registry.example/www:live#/unikernel.
func SourceText(i *fulmarv1.Image) string {
	switch source := i.GetSource().(type) {
	case *fulmarv1.Image_File:
		return source.File
	case *fulmarv1.Image_Object:
		return source.Object
	case *fulmarv1.Image_Url:
		return redacted(source.Url)
	case *fulmarv1.Image_Docker:
		return "docker:" + source.Docker.GetImage() + "#" + source.Docker.GetPath()
	case *fulmarv1.Image_Oci:
		text := "oci:" + source.Oci.GetLayout()
		if r := source.Oci.GetReference(); r != "" {
			text += "@" + r
		}
		return text + "#" + source.Oci.GetPath()
	case *fulmarv1.Image_Git:
		return gitText(source.Git)
	}
	return ""
}

func gitText(g *fulmarv1.GitSource) string {
	text := g.GetUrl()
	if !scpURL.MatchString(text) {
		text = "git+" + redacted(text)
	}
	if g.GetRef() == "" && g.GetDirectory() == "" {
		return text
	}
	text += "#" + g.GetRef()
	if g.GetDirectory() != "" {
		text += ":" + g.GetDirectory()
	}
	return text
}

// redacted gives a URL without its password, and nothing of one that cannot be read.
func redacted(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "a URL that cannot be read"
	}
	return u.Redacted()
}

// schemeOf is the scheme of a URL.
var schemeOf = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*://`)

// ShownURL gives a URL as an error may show it, however badly it is written: without the credential that it may have before an @. A token
// stands where others have the name of a user.
func ShownURL(s string) string {
	i := strings.LastIndexByte(s, '@')
	if u, err := url.Parse(s); i < 0 || err == nil && u.User == nil && u.Host != "" {
		return s
	}
	return schemeOf.FindString(s) + "xxxxx" + s[i:]
}
