<?xml version="1.0" encoding="UTF-8"?>
<!-- A UBL 2.1 Order (OASIS) in the words of purchase-order.schema.json. -->
<xsl:stylesheet version="1.0"
    xmlns:xsl="http://www.w3.org/1999/XSL/Transform"
    xmlns:ubl="urn:oasis:names:specification:ubl:schema:xsd:Order-2"
    xmlns:cac="urn:oasis:names:specification:ubl:schema:xsd:CommonAggregateComponents-2"
    xmlns:cbc="urn:oasis:names:specification:ubl:schema:xsd:CommonBasicComponents-2"
    exclude-result-prefixes="ubl cac cbc">
  <xsl:output method="xml" encoding="UTF-8" omit-xml-declaration="yes"/>

  <xsl:template match="/">
    <xsl:if test="not(ubl:Order)">
      <xsl:message terminate="yes">not a UBL Order: the root element is <xsl:value-of select="name(*)"/></xsl:message>
    </xsl:if>
    <xsl:apply-templates select="ubl:Order"/>
  </xsl:template>

  <xsl:template match="ubl:Order">
    <order>
      <number><xsl:value-of select="cbc:ID"/></number>
      <date><xsl:value-of select="cbc:IssueDate"/></date>
      <requested_delivery>
        <xsl:value-of select="cac:Delivery/cac:RequestedDeliveryPeriod/cbc:EndDate"/>
      </requested_delivery>
      <currency><xsl:value-of select="cbc:DocumentCurrencyCode"/></currency>
      <xsl:if test="cbc:Note">
        <note><xsl:value-of select="cbc:Note"/></note>
      </xsl:if>
      <buyer>
        <gln><xsl:value-of select="cac:BuyerCustomerParty/cac:Party/cac:PartyIdentification/cbc:ID[@schemeID='0088']"/></gln>
        <name><xsl:value-of select="cac:BuyerCustomerParty/cac:Party/cac:PartyName/cbc:Name"/></name>
      </buyer>
      <xsl:apply-templates select="cac:Delivery"/>
      <lines><xsl:apply-templates select="cac:OrderLine/cac:LineItem"/></lines>
    </order>
  </xsl:template>

  <xsl:template match="cac:Delivery">
    <ship_to>
      <name><xsl:value-of select="cac:DeliveryParty/cac:PartyName/cbc:Name"/></name>
      <street><xsl:value-of select="cac:DeliveryLocation/cac:Address/cbc:StreetName"/></street>
      <postcode><xsl:value-of select="cac:DeliveryLocation/cac:Address/cbc:PostalZone"/></postcode>
      <city><xsl:value-of select="cac:DeliveryLocation/cac:Address/cbc:CityName"/></city>
      <country><xsl:value-of select="cac:DeliveryLocation/cac:Address/cac:Country/cbc:IdentificationCode"/></country>
    </ship_to>
  </xsl:template>

  <xsl:template match="cac:LineItem">
    <line>
      <number><xsl:value-of select="cbc:ID"/></number>
      <sku><xsl:value-of select="cac:Item/cac:SellersItemIdentification/cbc:ID"/></sku>
      <xsl:if test="cac:Item/cac:StandardItemIdentification/cbc:ID">
        <gtin><xsl:value-of select="cac:Item/cac:StandardItemIdentification/cbc:ID"/></gtin>
      </xsl:if>
      <description><xsl:value-of select="cac:Item/cbc:Name"/></description>
      <quantity><xsl:value-of select="cbc:Quantity"/></quantity>
      <unit><xsl:value-of select="cbc:Quantity/@unitCode"/></unit>
      <unit_price><xsl:value-of select="cac:Price/cbc:PriceAmount"/></unit_price>
    </line>
  </xsl:template>
</xsl:stylesheet>
