package messages

import (
	"net/url"

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
